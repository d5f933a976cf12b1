"""Random flags from the same shapes as real ones."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Layer = Mapping[str, Any]

COLOURS = (
    "#ffffff", "#d21034", "#8d1b3d", "#f77f00", "#fcd116", "#78be20", "#007a3d", "#00a3a3", "#6cb4ee", "#0055a4",
    "#002868", "#5b2a86", "#e75480", "#7a4a1e", "#111111",
)  # fmt: skip
_SIZES = ((3, 2), (3, 2), (3, 2), (5, 3), (2, 1), (8, 5), (1, 1))
_HEIGHT = 20.0


def invent_flag(rng: random.Random) -> tuple[Mapping[str, Any], str]:
    """A flag specification and its signature: layout, emblem and colours, without fine measures."""
    across, down = rng.choice(_SIZES)
    width = _HEIGHT * across / down
    ground = rng.choice(list(_GROUNDS))
    emblem = rng.choice(list(_EMBLEMS)) if rng.random() < 0.65 else ""
    colours = rng.sample(COLOURS, 4)
    used, layers = _GROUNDS[ground](rng, width, colours)
    if emblem:
        place = rng.choice(("hoist", "middle", "canton")) if ground != "canton" else "fly"
        at = {"hoist": (0.25, 0.5), "middle": (0.5, 0.5), "canton": (0.22, 0.27), "fly": (0.7, 0.6)}[place]
        layers = [*layers, _EMBLEMS[emblem](rng, (at[0] * width, at[1] * _HEIGHT), colours[3])]
        emblem += place + colours[3]
    signature = "/".join((ground, emblem, *colours[:used]))
    return {"size": [width, _HEIGHT], "layers": layers}, signature


Ground = tuple[int, list[Layer]]
"""How many of the colours are used, and the layers."""


def _bands(direction: str, colours: Sequence[str], weights: Sequence[float]) -> Layer:
    return {"kind": "bands", "direction": direction, "colors": list(colours), "weights": list(weights)}


def _two_bands(rng: random.Random, width: float, colours: Sequence[str]) -> Ground:
    return 2, [_bands("horizontal", colours[:2], (1, 1))]


def _two_upright(rng: random.Random, width: float, colours: Sequence[str]) -> Ground:
    return 2, [_bands("vertical", colours[:2], rng.choice(((1, 1), (1, 2), (2, 1))))]


def _three_bands(rng: random.Random, width: float, colours: Sequence[str]) -> Ground:
    return 3, [_bands("horizontal", colours[:3], rng.choice(((1, 1, 1), (1, 1, 1), (1, 2, 1), (2, 1, 1))))]


def _three_upright(rng: random.Random, width: float, colours: Sequence[str]) -> Ground:
    return 3, [_bands("vertical", colours[:3], rng.choice(((1, 1, 1), (1, 1, 1), (1, 2, 1))))]


def _five_bands(rng: random.Random, width: float, colours: Sequence[str]) -> Ground:
    first, second, third = colours[:3]
    return 3, [_bands("horizontal", (first, second, third, second, first), (3, 1, 3, 1, 3))]


def _stripes(rng: random.Random, width: float, colours: Sequence[str]) -> Ground:
    count = rng.choice((7, 9, 11))
    return 2, [_bands("horizontal", [colours[i % 2] for i in range(count)], [1] * count)]


def _nordic(rng: random.Random, width: float, colours: Sequence[str]) -> Ground:
    at = (0.36 * width, _HEIGHT / 2)
    arms = [(colours[1], 6.0), (colours[2], 2.6)]
    return 3, [_plain(colours[0]), *({"kind": "cross", "color": c, "width": w, "at": at} for c, w in arms)]


def _upright_cross(rng: random.Random, width: float, colours: Sequence[str]) -> Ground:
    return 2, [_plain(colours[0]), {"kind": "cross", "color": colours[1], "width": rng.choice((3.0, 5.0))}]


def _saltire(rng: random.Random, width: float, colours: Sequence[str]) -> Ground:
    return 2, [_plain(colours[0]), {"kind": "saltire", "color": colours[1], "width": rng.choice((3.0, 5.0))}]


def _pennant(rng: random.Random, width: float, colours: Sequence[str]) -> Ground:
    tip = width * rng.choice((0.35, 0.5))
    points = [0, 0, tip, _HEIGHT / 2, 0, _HEIGHT]
    return 3, [_bands("horizontal", colours[:2], (1, 1)), {"kind": "polygon", "color": colours[2], "points": points}]


def _hoist_bands(rng: random.Random, width: float, colours: Sequence[str]) -> Ground:
    box = [0, 0, width * 0.3, _HEIGHT]
    return 3, [_bands("horizontal", colours[:2], (1, 1)), {"kind": "rect", "color": colours[2], "box": box}]


def _canton(rng: random.Random, width: float, colours: Sequence[str]) -> Ground:
    box = [0, 0, width * 0.42, _HEIGHT * 0.54]
    return 2, [_plain(colours[0]), {"kind": "rect", "color": colours[1], "box": box}]


def _diagonal(rng: random.Random, width: float, colours: Sequence[str]) -> Ground:
    rising = rng.random() < 0.5
    points = [0, 0, width, 0, 0, _HEIGHT] if rising else [0, 0, width, _HEIGHT, 0, _HEIGHT]
    ends = [0, _HEIGHT, width, 0] if rising else [0, 0, width, _HEIGHT]
    beam = {"kind": "line", "color": colours[2], "width": 4.0, "points": ends}
    return 3, [_plain(colours[0]), {"kind": "polygon", "color": colours[1], "points": points}, beam]


def _bordered(rng: random.Random, width: float, colours: Sequence[str]) -> Ground:
    box = [2.5, 2.5, width - 2.5, _HEIGHT - 2.5]
    return 2, [_plain(colours[0]), {"kind": "rect", "color": colours[1], "box": box}]


def _quarters(rng: random.Random, width: float, colours: Sequence[str]) -> Ground:
    whole = [0, 0, width, _HEIGHT]
    return 2, [{"kind": "chequer", "colors": list(colours[:2]), "columns": 2, "rows": 2, "box": whole}]


def _plain(colour: str) -> Layer:
    return {"kind": "rect", "color": colour}


_GROUNDS: Mapping[str, Callable[[random.Random, float, Sequence[str]], Ground]] = {
    ground.__name__.strip("_"): ground
    for ground in (
        _two_bands, _two_upright, _three_bands, _three_upright, _five_bands, _stripes, _nordic, _upright_cross,
        _saltire, _pennant, _hoist_bands, _canton, _diagonal, _bordered, _quarters,
    )
}  # fmt: skip


def _disc(rng: random.Random, at: tuple[float, float], colour: str) -> Layer:
    return {"kind": "disc", "color": colour, "at": at, "radius": rng.uniform(3.5, 5.0)}


def _ring(rng: random.Random, at: tuple[float, float], colour: str) -> Layer:
    return {"kind": "ring", "color": colour, "at": at, "radius": rng.uniform(4.0, 5.0), "width": 1.4}


def _star(rng: random.Random, at: tuple[float, float], colour: str) -> Layer:
    points = rng.choice((5, 5, 6, 8))
    return {"kind": "stars", "color": colour, "places": [(*at, 5.0)], "points": points, "inner": 0.45}


def _three_stars(rng: random.Random, at: tuple[float, float], colour: str) -> Layer:
    places = [(at[0] + dx, at[1] + dy, 2.0) for dx, dy in ((-3.0, 1.8), (3.0, 1.8), (0.0, -3.0))]
    return {"kind": "stars", "color": colour, "places": places, "points": 5}


def _crescent(rng: random.Random, at: tuple[float, float], colour: str) -> Layer:
    return {"kind": "crescent", "color": colour, "at": at, "radius": 4.6, "bite": (at[0] + 1.9, at[1], 3.8)}


def _lozenge(rng: random.Random, at: tuple[float, float], colour: str) -> Layer:
    return {"kind": "polygon", "color": colour, "points": [0, -5, 4, 0, 0, 5, -4, 0], "at": at}


def _plus(rng: random.Random, at: tuple[float, float], colour: str) -> Layer:
    box = (at[0] - 4.0, at[1] - 4.0, at[0] + 4.0, at[1] + 4.0)
    return {"kind": "cross", "color": colour, "width": 2.4, "box": box}


_EMBLEMS: Mapping[str, Callable[[random.Random, tuple[float, float], str], Layer]] = {
    emblem.__name__.strip("_"): emblem for emblem in (_disc, _ring, _star, _three_stars, _crescent, _lozenge, _plus)
}
