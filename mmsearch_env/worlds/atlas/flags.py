"""Flags drawn from a compact specification.

A specification is a small JSON object, written in units of its own (usually the official construction grid)::

    {"size": [3, 2], "layers": [{"kind": "bands", "direction": "vertical",
                                 "colors": ["#000091", "#ffffff", "#e1000f"]}]}

``size`` is width and height, the proportions of the flag; layers are painted in order. The kinds of layers and their
keywords are the functions of :mod:`mmsearch_env.worlds.atlas.flag_shapes`. ``"simplified": true`` states that an
emblem is drawn with fewer details than the official one. Plain geometry follows the official construction; emblems
that no geometry describes are outlines thinned from the public-domain drawings at
https://github.com/hampusborgos/country-flags (taken from Wikimedia Commons).

Use::

    spec = FlagSpec.from_json(data)
    picture = draw_flag(spec, height_px=120)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import PIL.Image
import PIL.ImageColor
import PIL.ImageDraw

from mmsearch_env.errors import DataError
from mmsearch_env.images import Image
from mmsearch_env.worlds.atlas.flag_shapes import KINDS, Frame, Patch, Point

MAX_HEIGHT_PX = 2000
"""Tallest flag that is drawn, in pixels: supersampled it still is below a hundred million samples."""
_FINE_SAMPLES = 8
_SAMPLES = 4
_SMALL_PX = 64
_KEYS = frozenset({"size", "layers", "simplified"})


@dataclass(frozen=True, slots=True)
class FlagSpec:
    """What a flag looks like.

    Attributes:
        width: proportion across, in units of the specification.
        height: proportion down, in the same units.
        patches: coloured outlines in the order of painting.
        simplified: whether an emblem has fewer details than the official one.
    """

    width: float
    height: float
    patches: tuple[Patch, ...] = field(repr=False)
    simplified: bool = False

    @classmethod
    def from_json(cls, data: Mapping[str, Any], *, name: str = "flag") -> Self:
        """Read a specification.

        Args:
            data: the parsed JSON object.
            name: what errors call it.

        Raises:
            DataError: an unknown key, kind or keyword, a bad colour, or a size that is not two positive numbers.
        """
        if not data.keys() <= _KEYS or not {"size", "layers"} <= data.keys():
            raise DataError(f"{name}: expected the keys {sorted(_KEYS)}, got {sorted(data)}; mend the specification")
        size = data["size"]
        if len(size) != 2 or min(size) <= 0:
            raise DataError(f"{name}: expected a size of two positive numbers, got {size}; mend the specification")
        frame: Frame = (float(size[0]), float(size[1]))
        patches = tuple(patch for layer in data["layers"] for patch in _patches(layer, frame, name))
        return cls(frame[0], frame[1], patches, bool(data.get("simplified", False)))


def draw_flag(spec: FlagSpec, height_px: int) -> Image:
    """Draw a flag ``height_px`` pixels high, as wide as its proportions say, antialiased by supersampling.

    Raises:
        DataError: ``height_px`` is outside 1..MAX_HEIGHT_PX.
    """
    if not 1 <= height_px <= MAX_HEIGHT_PX:
        raise DataError(f"flag: expected a height of 1..{MAX_HEIGHT_PX} pixels, got {height_px}; choose another height")
    width_px = max(1, round(height_px * spec.width / spec.height))
    samples = _FINE_SAMPLES if height_px < _SMALL_PX else _SAMPLES
    canvas = PIL.Image.new("RGB", (width_px * samples, height_px * samples), "white")
    across, down = canvas.width / spec.width, canvas.height / spec.height
    brush = PIL.ImageDraw.Draw(canvas)
    for color, outline in spec.patches:
        _paint(brush, color, [(x * across, y * down) for x, y in outline])
    return Image(np.asarray(canvas.reduce(samples)))


def _paint(brush: PIL.ImageDraw.ImageDraw, color: str, outline: list[Point]) -> None:
    """Fill an outline given in samples, corner to corner."""
    columns, rows = sorted({x for x, _ in outline}), sorted({y for _, y in outline})
    steps = [(x0 == x1) != (y0 == y1) for (x0, y0), (x1, y1) in zip(outline, outline[1:] + outline[:1], strict=True)]
    if len(outline) == 4 and len(columns) == len(rows) == 2 and all(steps):
        # Pillow's polygons take in their edges; bands that meet must not.
        left, right = (round(x) for x in columns)
        top, bottom = (round(y) for y in rows)
        if left < right and top < bottom:
            brush.rectangle((left, top, right - 1, bottom - 1), fill=color)
        return
    # Pillow's coordinates name the middles of pixels, ours their corners: hence the half.
    brush.polygon([(x - 0.5, y - 0.5) for x, y in outline], fill=color)


def _patches(layer: Mapping[str, Any], frame: Frame, name: str) -> list[Patch]:
    """One layer as coloured outlines. Raises DataError with the layer."""
    keywords = dict(layer)
    kind = keywords.pop("kind", None)
    if kind not in KINDS:
        raise DataError(f"{name}: expected a kind of {sorted(KINDS)}, got {kind!r}; mend the layer {dict(layer)}")
    try:
        patches = KINDS[kind](frame, **keywords)
        for patch in patches:
            PIL.ImageColor.getrgb(patch.color)
    except (TypeError, ValueError, IndexError) as error:
        raise DataError(f"{name}: expected a {kind} layer, got {dict(layer)}; {error}") from error
    return patches
