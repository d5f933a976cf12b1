"""Flags: the drawing of specifications, and the flags of the atlas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mmsearch_env.errors import DataError
from mmsearch_env.worlds.atlas.countries import country_by_id, load_countries
from mmsearch_env.worlds.atlas.flag_shapes import KINDS
from mmsearch_env.worlds.atlas.flags import FlagSpec, draw_flag

RED, BLUE, WHITE = "#ff0000", "#0000ff", "#ffffff"


def drawn(size: list[float], *layers: dict[str, Any], height_px: int = 100) -> np.ndarray:
    """Pixels of a specification, (height, width, 3) uint8."""
    return draw_flag(FlagSpec.from_json({"size": size, "layers": list(layers)}), height_px).pixels


def test_bands_share_the_flag_by_weight() -> None:
    pixels = drawn([3, 2], {"kind": "bands", "direction": "horizontal", "colors": [RED, BLUE], "weights": [3, 1]})
    assert pixels.shape == (100, 150, 3)
    assert (pixels[:75] == [255, 0, 0]).all()
    assert (pixels[75:] == [0, 0, 255]).all()


def test_vertical_bands_start_at_the_hoist() -> None:
    pixels = drawn([2, 1], {"kind": "bands", "direction": "vertical", "colors": [RED, BLUE]})
    assert (pixels[:, :100] == [255, 0, 0]).all()
    assert (pixels[:, 100:] == [0, 0, 255]).all()


@pytest.mark.parametrize(
    ("layer", "share"),
    [
        ({"kind": "rect", "color": RED, "box": [0, 0, 5, 10]}, 0.5),
        ({"kind": "polygon", "color": RED, "points": [0, 0, 10, 5, 0, 10]}, 0.5),
        ({"kind": "polygon", "color": RED, "points": [0, 0, 10, 0, 0, 10, 10, 10]}, 0.5),
        ({"kind": "polygon", "color": RED, "points": [0, 0, 2, 0, 0, 2], "at": [5, 5], "copies": 4}, 0.08),
        ({"kind": "drawing", "scale": 0.1, "outlines": [[RED, [0, 0, 50, 0, 50, 50, 0, 50]]]}, 0.25),
        ({"kind": "disc", "color": RED, "at": [5, 5], "radius": 4}, 0.5027),
        ({"kind": "disc", "color": RED, "at": [5, 5], "radius": 4, "arc": [180, 360]}, 0.2513),
        ({"kind": "ring", "color": RED, "at": [5, 5], "radius": 4, "width": 2}, 0.3770),
        ({"kind": "cross", "color": RED, "width": 2}, 0.36),
        ({"kind": "saltire", "color": RED, "width": 2**0.5}, 0.36),
        ({"kind": "line", "color": RED, "width": 1, "points": [1, 5, 9, 5]}, 0.08),
        ({"kind": "teeth", "color": RED, "base": 4, "tip": 6, "count": 5}, 0.5),
        ({"kind": "chequer", "colors": [RED, WHITE], "columns": 2, "rows": 2, "box": [0, 0, 10, 10]}, 0.5),
        # Two circles of radius 4 whose centres are 4 apart share 2 pi / 3 - sqrt(3) / 2 times 16.
        ({"kind": "crescent", "color": RED, "at": [5, 5], "radius": 4, "bite": [9, 5, 4]}, 0.3061),
        # A pentagram of outer radius 4 covers 1.12257 times 16.
        ({"kind": "stars", "color": RED, "places": [[5, 5, 4]]}, 0.1796),
        ({"kind": "stars", "color": RED, "places": [[5, 5, 4, 45]], "points": 4, "inner": 0.7071}, 0.32),
    ],
)
def test_shapes_cover_the_right_share(layer: dict[str, Any], share: float) -> None:
    pixels = drawn([10, 10], {"kind": "rect", "color": WHITE}, layer, height_px=200)
    assert (255 - pixels[:, :, 1]).mean() / 255 == pytest.approx(share, abs=0.008)


def test_every_kind_is_covered_here() -> None:
    assert set(KINDS) == {
        *("bands", "rect", "polygon", "drawing", "disc", "ring", "crescent", "stars", "cross", "saltire", "line"),
        *("teeth", "chequer", "union_jack"),
    }


def test_one_point_of_a_star_looks_up_until_turned() -> None:
    star = {"kind": "stars", "color": BLUE, "points": 3, "inner": 0.5}
    ground = {"kind": "rect", "color": WHITE}
    upright = drawn([10, 10], ground, star | {"places": [[5, 5, 4]]})
    turned = drawn([10, 10], ground, star | {"places": [[5, 5, 4, 180]]})
    assert tuple(upright[20, 50]) == (0, 0, 255)
    assert tuple(upright[80, 50]) == (255, 255, 255)
    assert tuple(turned[80, 50]) == (0, 0, 255)


def test_union_jack_is_counterchanged() -> None:
    # On the 60 x 30 grid: red runs below the diagonal in the upper hoist and above it in the upper fly.
    pixels = drawn([60, 30], {"kind": "union_jack"}, height_px=300)
    assert tuple(pixels[150, 300]) == (200, 16, 46)
    assert tuple(pixels[70, 122]) == (200, 16, 46)
    assert tuple(pixels[50, 122]) == (255, 255, 255)
    assert tuple(pixels[50, 600 - 122]) == (200, 16, 46)
    assert tuple(pixels[70, 600 - 122]) == (255, 255, 255)
    assert tuple(pixels[20, 150]) == (1, 33, 105)


@pytest.mark.parametrize(
    "data",
    [
        {"size": [3, 2]},
        {"size": [3, 0], "layers": []},
        {"size": [3, 2], "layers": [], "author": "x"},
        {"size": [3, 2], "layers": [{"kind": "blob"}]},
        {"size": [3, 2], "layers": [{"kind": "rect"}]},
        {"size": [3, 2], "layers": [{"kind": "rect", "color": "#12"}]},
        {"size": [3, 2], "layers": [{"kind": "rect", "color": RED, "radius": 1}]},
        {"size": [3, 2], "layers": [{"kind": "polygon", "color": RED, "points": [0, 0, 1]}]},
        {"size": [3, 2], "layers": [{"kind": "bands", "direction": "diagonal", "colors": [RED]}]},
        {"size": [3, 2], "layers": [{"kind": "crescent", "color": RED, "at": [1, 1], "radius": 1, "bite": [5, 1, 1]}]},
    ],
)
def test_bad_specifications_are_refused_by_name(data: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="^utopia: expected"):
        FlagSpec.from_json(data, name="utopia")


@pytest.mark.parametrize("height_px", [0, 2001])
def test_height_has_limits(height_px: int) -> None:
    with pytest.raises(DataError, match="expected a height of 1..2000"):
        draw_flag(country_by_id("france").flag, height_px)


@pytest.mark.parametrize("height_px", [1, 9, 64, 180])
def test_every_flag_draws_at_every_size(height_px: int) -> None:
    for country in load_countries():
        picture = draw_flag(country.flag, height_px)
        assert picture.height == height_px, country.id
        assert picture.width == max(1, round(height_px * country.flag.width / country.flag.height)), country.id
        if height_px >= 9:
            assert (picture.pixels != picture.pixels[0, 0]).any(), country.id


def test_drawing_twice_gives_the_same_pixels() -> None:
    spec = country_by_id("brazil").flag
    assert draw_flag(spec, 90) == draw_flag(spec, 90)


@pytest.mark.parametrize(
    ("country_id", "width", "height"),
    [
        ("switzerland", 1, 1),
        ("vatican-city", 1, 1),
        ("belgium", 15, 13),
        ("denmark", 37, 28),
        ("germany", 5, 3),
        ("france", 3, 2),
        ("norway", 22, 16),
        ("iceland", 25, 18),
        ("brazil", 10, 7),
        ("united-kingdom", 2, 1),
        ("united-states", 19, 10),
        ("qatar", 28, 11),
        ("togo", 1.618, 1),
    ],
)
def test_proportions_are_the_official_ones(country_id: str, width: float, height: float) -> None:
    flag = country_by_id(country_id).flag
    assert flag.width / flag.height == pytest.approx(width / height, abs=1e-3)


def test_nepal_is_a_double_pennant_on_white_taller_than_wide() -> None:
    picture = draw_flag(country_by_id("nepal").flag, 200)
    assert picture.width < picture.height
    assert tuple(picture.pixels[10, -5]) == (255, 255, 255)
    assert tuple(picture.pixels[100, 16]) == (220, 20, 60)


def color_at(country_id: str, x: float, y: float) -> str:
    """Colour at a share of width and height."""
    pixels = draw_flag(country_by_id(country_id).flag, 240).pixels
    return "#" + bytes(pixels[int(y * pixels.shape[0]), int(x * pixels.shape[1])]).hex()


@pytest.mark.parametrize(
    ("country_id", "x", "y", "color"),
    [
        ("france", 0.1, 0.5, "#000091"),
        ("france", 0.9, 0.5, "#e1000f"),
        ("germany", 0.5, 0.9, "#ffcc00"),
        ("sweden", 0.4, 0.1, "#fecc02"),
        ("japan", 0.5, 0.5, "#bc002d"),
        ("ukraine", 0.5, 0.9, "#ffd700"),
        ("chile", 0.1, 0.1, "#0039a6"),
        ("south-africa", 0.5, 0.5, "#007749"),
        ("south-africa", 0.1, 0.5, "#000000"),
        ("canada", 0.5, 0.5, "#d52b1e"),
        ("australia", 0.75, 0.17, "#ffffff"),
        ("syria", 0.5, 0.1, "#007a3d"),
    ],
)
def test_colors_are_in_their_places(country_id: str, x: float, y: float, color: str) -> None:
    assert color_at(country_id, x, y) == color


def test_thinned_emblems_are_declared() -> None:
    simplified = {country.id for country in load_countries() if country.flag.simplified}
    assert {"mexico", "spain", "sri-lanka", "iran"} <= simplified
    assert not {"france", "japan", "canada", "united-kingdom", "south-korea"} & simplified
