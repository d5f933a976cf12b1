"""Question pictures: the same for the same seed, never the drawing itself, small enough for a tiny model."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest

from mmsearch_env.images import Image
from mmsearch_env.worlds import load_world
from mmsearch_env.worlds.atlas.flags import FlagSpec
from mmsearch_env.worlds.drawings import FlagDrawing
from mmsearch_env.worlds.pictures import PICTURE_SIZES, USUAL, Disturbance, QuestionPicture, disturbed, picture_size

NONE = Disturbance(
    turn_deg=0.0, corner_shift=0.0, margin=0.0, crop=0.0, gain=1.0, gamma=1.0, cast=0.0, shade=0.0, noise=0.0,
    jpeg_quality=95,
)  # fmt: skip


@pytest.fixture
def tricolour() -> FlagDrawing:
    """Blue, white and red, three wide and two high."""
    bands = {"kind": "bands", "direction": "vertical", "colors": ["#3050a0", "#e0e0e0", "#b03040"]}
    return FlagDrawing(FlagSpec.from_json({"size": [3, 2], "layers": [bands]}))


def test_same_seed_gives_the_same_pixels_and_another_seed_others(tricolour: FlagDrawing) -> None:
    assert QuestionPicture(tricolour, "a").load() == QuestionPicture(tricolour, "a").load()
    assert QuestionPicture(tricolour, "a").load() != QuestionPicture(tricolour, "b").load()


def test_without_disturbance_the_flag_fills_the_picture(tricolour: FlagDrawing) -> None:
    picture = disturbed(tricolour, "a", NONE)
    assert (picture.width, picture.height) == (168, 112)
    for x, expected in ((28, (48, 80, 160)), (84, (224, 224, 224)), (140, (176, 48, 64))):
        assert np.abs(picture.pixels[56, x].astype(int) - expected).max() <= 3


@pytest.mark.parametrize(
    "field", ["turn_deg", "corner_shift", "margin", "crop", "gain", "gamma", "cast", "shade", "noise"]
)
def test_each_disturbance_changes_the_picture(tricolour: FlagDrawing, field: str) -> None:
    only = dataclasses.replace(NONE, **{field: getattr(USUAL, field)})
    change = disturbed(tricolour, "a", only).pixels.astype(int) - disturbed(tricolour, "a", NONE).pixels
    assert np.abs(change).max() >= 3


def test_jpeg_changes_the_picture(tricolour: FlagDrawing) -> None:
    assert disturbed(tricolour, "a", dataclasses.replace(NONE, jpeg_quality=10)) != disturbed(tricolour, "a", NONE)


@pytest.mark.parametrize(
    ("aspect", "size"), [(1.5, (168, 112)), (1.9, (224, 112)), (1.0, (140, 140)), (0.82, (112, 140)), (1.2, (168, 140))]
)
def test_picture_takes_the_nearest_shape(aspect: float, size: tuple[int, int]) -> None:
    assert picture_size(aspect) == size


def test_pictures_fit_thirty_two_patches() -> None:
    assert all(width % 28 == height % 28 == 0 and width * height <= 32 * 28 * 28 for width, height in PICTURE_SIZES)
    questions = load_world("atlas").questions("test")
    pictures = [question.load_image() for question in questions[::40]]
    assert {(picture.width, picture.height) for picture in pictures} <= set(PICTURE_SIZES)


def test_drawing_is_named_by_what_it_shows(tricolour: FlagDrawing) -> None:
    other = FlagDrawing(FlagSpec.from_json({"size": [3, 2], "layers": [{"kind": "rect", "color": "#0000ff"}]}))
    assert tricolour.key != other.key
    assert len(tricolour.key) == 64
    assert (tricolour.load().width, tricolour.load().height) == (180, 120)


def test_question_pictures_survive_a_pickle(tricolour: FlagDrawing) -> None:
    picture = QuestionPicture(tricolour, "a")
    copy = pickle.loads(pickle.dumps(picture))
    assert copy == picture
    assert isinstance(copy.load(), Image)
