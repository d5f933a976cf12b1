"""Members of the spaces, and what they mean."""

from __future__ import annotations

import json
import pickle
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces as gym_spaces
from gymnasium.error import CustomSpaceError
from gymnasium.vector.utils import create_shared_memory

from mmsearch_env.actions import Answer, ImageSearch, TextSearch
from mmsearch_env.episode import EpisodeState, Rules
from mmsearch_env.errors import EpisodeError
from mmsearch_env.images import FULL_FRAME, Image
from mmsearch_env.messages import ImagePart, Message, TextPart
from mmsearch_env.spaces import (
    ImageSpace,
    UnicodeText,
    action_space,
    observation,
    observation_space,
    to_action,
    to_messages,
)


def test_unicode_text_holds_any_text_up_to_its_length() -> None:
    space = UnicodeText(5)
    for text in ("", "Ж中🇹🇩", "\x00", "\ud800", "a<|b"):
        assert text in space
    assert "123456" not in space
    assert 3 not in space
    assert space == UnicodeText(5) != UnicodeText(6)
    space.seed(1)
    assert all(1 <= len(space.sample()) <= 5 for _ in range(50))
    assert len(space.sample(mask=(3, None))) == 3


def test_image_space_holds_pictures_of_any_size() -> None:
    space = ImageSpace(100)
    for shape in ((1, 1, 3), (100, 7, 3)):
        assert np.zeros(shape, np.uint8) in space
    for wrong in (
        np.zeros((101, 1, 3), np.uint8),
        np.zeros((0, 5, 3), np.uint8),
        np.zeros((5, 5, 4), np.uint8),
        np.zeros((5, 5), np.uint8),
        np.zeros((5, 5, 3), np.float32),
        [[1]],
    ):
        assert wrong not in space
    space.seed(1)
    samples = [space.sample() for _ in range(20)]
    assert all(sample in space for sample in samples)
    assert len({sample.shape for sample in samples}) > 1
    with pytest.raises(ValueError, match="no mask"):
        space.sample(mask=1)


@pytest.mark.parametrize("space", [action_space(Rules()), observation_space(Rules())], ids=["action", "observation"])
def test_members_survive_json_and_spaces_a_pickle(space: gym_spaces.Dict) -> None:
    space.seed(3)
    samples = [space.sample() for _ in range(5)]
    again = space.from_jsonable(json.loads(json.dumps(space.to_jsonable(samples))))
    assert all(sample in space for sample in again)
    assert pickle.loads(pickle.dumps(space)) == space


@pytest.mark.parametrize("space", [UnicodeText(9), ImageSpace(), observation_space(Rules())["content"]])
def test_shared_memory_is_refused_loudly(space: gym_spaces.Space[Any]) -> None:
    """Gymnasium's own text space would be shared, and every observation would be the same frozen text."""
    with pytest.raises((CustomSpaceError, TypeError), match="shared"):
        create_shared_memory(space, 2)


def test_every_sampled_action_means_something_and_kinds_can_be_masked() -> None:
    space = action_space(Rules())
    space.seed(5)
    kinds = {type(to_action(space.sample())) for _ in range(40)}
    assert kinds == {Answer, ImageSearch, TextSearch}
    only = {"kind": np.array([0, 0, 1], np.int8), "text": None, "bbox": None}
    assert {type(to_action(space.sample(mask=only))) for _ in range(10)} == {TextSearch}


@pytest.mark.parametrize(
    ("member", "action"),
    [
        ({"kind": 0, "text": "Chad"}, Answer("Chad")),
        ({"kind": np.int64(2), "text": "q", "bbox": None}, TextSearch("q")),
        ({"kind": np.array(1)}, ImageSearch()),
        ({"kind": "image_search", "bbox": [0.5, 0.9, 0.1, 0.2]}, ImageSearch((0.1, 0.2, 0.5, 0.9))),
        ({"kind": 1, "bbox": [0.2, 0.2, 0.2, 0.9]}, ImageSearch(FULL_FRAME)),
        ({"kind": 1, "bbox": [np.nan, 0, 1, 1]}, ImageSearch(FULL_FRAME)),
        ({"kind": 1, "bbox": [-3, -1, 0.5, 9]}, ImageSearch((0.0, 0.0, 0.5, 1.0))),
        ({"kind": 1, "bbox": [0.1]}, ImageSearch(FULL_FRAME)),
    ],
)
def test_what_a_member_means(member: dict[str, Any], action: Any) -> None:
    assert to_action(member) == action


@pytest.mark.parametrize(
    "member",
    [{}, {"kind": 4}, {"kind": -1}, {"kind": "buy"}, {"kind": [0, 1]}, {"kind": 0, "text": b"x"}, {"kind": 0.5}],
)
def test_what_is_no_member_is_the_callers_mistake(member: dict[str, Any]) -> None:
    with pytest.raises(EpisodeError, match="expected"):
        to_action(member)


def test_an_observation_is_messages_and_back(picture: Image) -> None:
    rules, state = Rules(max_rounds=5), EpisodeState(2, n_image_search=1)
    messages = (
        Message("user", (ImagePart(picture), TextPart("Which?"))),
        Message("assistant", (TextPart("<answer>"),)),
        Message("user", (TextPart("no"),)),
    )
    seen = observation(messages, rules, state)
    assert seen in observation_space(rules)
    assert [index for index, _ in seen["content"]] == [1, 0, 0, 0]
    assert seen["speaker"] == (0, 0, 1, 0)
    assert (seen["round"], seen["image_searches_left"], seen["text_searches_left"]) == (2, 0, 2)
    assert to_messages(seen) == messages
    array = seen["content"][0][1]
    assert not np.shares_memory(array, picture.pixels)
    assert array.flags.writeable
