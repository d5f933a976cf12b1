"""The shapes flags are made of, as coloured polygons.

Each function of :data:`KINDS` takes the frame (width and height of the flag) and the keywords of one layer and returns
what is to be painted. Lengths are in the units of the flag's own specification, the origin is the upper hoist corner,
x runs to the fly and y down. Angles are in degrees, clockwise. Colours are ``#rrggbb``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

Point = tuple[float, float]
Outline = tuple[Point, ...]
Frame = tuple[float, float]
Box = Sequence[float]
"""Left, top, right, bottom."""

_CIRCLE_POINTS = 96


class Patch(NamedTuple):
    """One filled polygon.

    Attributes:
        color: ``#rrggbb``.
        outline: the corners in order; the last is joined to the first.
    """

    color: str
    outline: Outline


def bands(
    frame: Frame, *, direction: str, colors: Sequence[str], weights: Sequence[float] = (), box: Box = ()
) -> list[Patch]:
    """Stripes that fill the box: ``horizontal`` from the top or ``vertical`` from the hoist; equal by default."""
    if direction not in ("horizontal", "vertical"):
        raise ValueError(f"a direction is horizontal or vertical, not {direction!r}")
    shares = weights or [1.0] * len(colors)
    left, top, right, bottom = box or (0.0, 0.0, *frame)
    edges = [sum(shares[:count]) / sum(shares) for count in range(len(colors) + 1)]
    stripes = []
    for color, start, stop in zip(colors, edges[:-1], edges[1:], strict=True):
        if direction == "horizontal":
            area = (left, top + start * (bottom - top), right, top + stop * (bottom - top))
        else:
            area = (left + start * (right - left), top, left + stop * (right - left), bottom)
        stripes.append(Patch(color, _corners(area)))
    return stripes


def rect(frame: Frame, *, color: str, box: Box = ()) -> list[Patch]:
    """A filled box; without one, the whole flag."""
    return [Patch(color, _corners(box or (0.0, 0.0, *frame)))]


def polygon(
    frame: Frame,
    *,
    color: str,
    points: Sequence[float],
    at: Sequence[float] = (0.0, 0.0),
    scale: float = 1.0,
    turn: float = 0.0,
    copies: int = 1,
) -> list[Patch]:
    """Corners ``x, y, x, y, ...``, scaled and turned about their origin, which is laid on ``at``.

    ``copies`` paints it that many times, each turned by a further ``360 / copies`` degrees.
    """
    corners = list(zip(points[::2], points[1::2], strict=True))
    angles = [turn + 360.0 * copy / copies for copy in range(copies)]
    return [Patch(color, tuple(_placed(x, y, at, scale, angle) for x, y in corners)) for angle in angles]


def drawing(
    frame: Frame, *, outlines: Sequence[Sequence[Any]], scale: float, at: Sequence[float] = (0.0, 0.0)
) -> list[Patch]:
    """Many polygons: each entry is a colour and its outlines ``x, y, x, y, ...`` in units of ``scale``."""
    patches = []
    for color, *areas in outlines:
        patches += [patch for area in areas for patch in polygon(frame, color=color, points=area, at=at, scale=scale)]
    return patches


def disc(
    frame: Frame, *, color: str, at: Sequence[float], radius: float, arc: Sequence[float] = (0.0, 360.0)
) -> list[Patch]:
    """A disc, or its sector from ``arc[0]`` to ``arc[1]`` degrees (0 is towards the fly, 90 down)."""
    edge = _arc(at, radius, arc[0], arc[1])
    whole = arc[1] - arc[0] >= 360.0
    return [Patch(color, edge if whole else ((at[0], at[1]), *edge))]


def ring(frame: Frame, *, color: str, at: Sequence[float], radius: float, width: float) -> list[Patch]:
    """A ring of the given outer radius and width."""
    return [Patch(color, _arc(at, radius, 0.0, 360.0) + _arc(at, radius - width, 360.0, 0.0))]


def crescent(frame: Frame, *, color: str, at: Sequence[float], radius: float, bite: Sequence[float]) -> list[Patch]:
    """A disc less another one, ``bite`` = x, y, radius, which must cross its edge."""
    across, down = bite[0] - at[0], bite[1] - at[1]
    apart = math.hypot(across, down)
    heading = math.degrees(math.atan2(down, across))
    along = (apart**2 + radius**2 - bite[2] ** 2) / (2.0 * apart)
    outer = math.degrees(math.acos(along / radius))
    inner = math.degrees(math.acos((along - apart) / bite[2]))
    edge = _arc(at, radius, heading + outer, heading + 360.0 - outer)
    hollow = _arc(bite[:2], bite[2], heading + 360.0 - inner, heading + inner)
    return [Patch(color, edge + hollow)]


def stars(
    frame: Frame, *, color: str, places: Sequence[Sequence[float]], points: int = 5, inner: float = 0.0
) -> list[Patch]:
    """Stars at ``places``, each x, y, outer radius and (if not 0) a turn; one point looks up.

    ``inner`` is the inner radius as a share of the outer; 0 means the straight-sided star (the pentagram for 5 points).
    """
    share = inner or math.cos(2.0 * math.pi / points) / math.cos(math.pi / points)
    found = []
    for x, y, radius, *turn in places:
        start = -90.0 + (turn[0] if turn else 0.0)
        lengths = [radius if corner % 2 == 0 else radius * share for corner in range(2 * points)]
        corners = tuple(_polar((x, y), r, start + 180.0 * i / points) for i, r in enumerate(lengths))
        found.append(Patch(color, corners))
    return found


def cross(frame: Frame, *, color: str, width: float, at: Sequence[float] = (), box: Box = ()) -> list[Patch]:
    """An upright cross through ``at`` (the middle by default) whose arms reach the edges of the box."""
    left, top, right, bottom = box or (0.0, 0.0, *frame)
    x, y = at or ((left + right) / 2.0, (top + bottom) / 2.0)
    half = width / 2.0
    return [
        Patch(color, _corners((left, y - half, right, y + half))),
        Patch(color, _corners((x - half, top, x + half, bottom))),
    ]


def saltire(frame: Frame, *, color: str, width: float, box: Box = ()) -> list[Patch]:
    """A diagonal cross from corner to corner of the box, cut off at its edges."""
    left, top, right, bottom = area = tuple(box or (0.0, 0.0, *frame))
    falling = _beam((left, top), (right, bottom), width, overshoot=width)
    rising = _beam((left, bottom), (right, top), width, overshoot=width)
    return [Patch(color, _clipped(beam, _corners(area))) for beam in (falling, rising)]


def line(frame: Frame, *, color: str, width: float, points: Sequence[float]) -> list[Patch]:
    """Straight beams along ``x, y, x, y, ...``, cut square at each end."""
    corners = list(zip(points[::2], points[1::2], strict=True))
    return [Patch(color, _beam(start, stop, width)) for start, stop in zip(corners, corners[1:], strict=False)]


def teeth(frame: Frame, *, color: str, base: float, tip: float, count: int) -> list[Patch]:
    """The hoist up to a serrated edge of ``count`` teeth, ``base`` in the notches and ``tip`` at the points."""
    step = frame[1] / count
    edge: list[Point] = [(0.0, 0.0), (base, 0.0)]
    for tooth in range(count):
        edge += [(tip, (tooth + 0.5) * step), (base, (tooth + 1.0) * step)]
    return [Patch(color, (*edge, (0.0, frame[1])))]


def chequer(frame: Frame, *, colors: Sequence[str], columns: int, rows: int, box: Box) -> list[Patch]:
    """Squares of two colours, the first in the upper hoist corner."""
    left, top, right, bottom = box
    wide, high = (right - left) / columns, (bottom - top) / rows
    return [
        Patch(
            colors[(row + column) % 2],
            _corners((left + column * wide, top + row * high, left + (column + 1) * wide, top + (row + 1) * high)),
        )
        for row in range(rows)
        for column in range(columns)
    ]


def union_jack(frame: Frame, *, box: Box = ()) -> list[Patch]:
    """The flag of the United Kingdom on its official 60 x 30 grid, stretched to the box."""
    blue, white, red = "#012169", "#ffffff", "#c8102e"
    grid = (60.0, 30.0)
    painted = rect(grid, color=blue) + saltire(grid, color=white, width=6.0)
    # The red diagonals are counterchanged: each shows only on one side of its white one, like a pinwheel.
    for side in ((0, 0, 0, 15), (60, 0, 30, 0), (60, 30, 60, 15), (0, 30, 30, 30)):
        corner, foot = (float(side[0]), float(side[1])), (float(side[2]), float(side[3]))
        beam = _beam((30.0, 15.0), corner, 4.0, overshoot=4.0)
        painted.append(Patch(red, _clipped(beam, ((30.0, 15.0), foot, corner))))
    painted += cross(grid, color=white, width=10.0) + cross(grid, color=red, width=6.0)
    left, top, right, bottom = box or (0.0, 0.0, *frame)
    across, down = (right - left) / grid[0], (bottom - top) / grid[1]
    return [Patch(color, tuple((left + x * across, top + y * down) for x, y in edge)) for color, edge in painted]


KINDS: Mapping[str, Callable[..., list[Patch]]] = {
    shape.__name__: shape
    for shape in (
        bands,
        rect,
        polygon,
        drawing,
        disc,
        ring,
        crescent,
        stars,
        cross,
        saltire,
        line,
        teeth,
        chequer,
        union_jack,
    )
}
"""Every kind of layer by the name it has in a specification."""


def _corners(box: Box) -> Outline:
    """A box as four corners."""
    left, top, right, bottom = box
    return ((left, top), (right, top), (right, bottom), (left, bottom))


def _polar(at: Sequence[float], radius: float, degrees: float) -> Point:
    """The point ``radius`` away from ``at`` under an angle."""
    angle = math.radians(degrees)
    return (at[0] + radius * math.cos(angle), at[1] + radius * math.sin(angle))


def _placed(x: float, y: float, at: Sequence[float], scale: float, degrees: float) -> Point:
    """A point scaled and turned about the origin, then moved by ``at``."""
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    return (at[0] + scale * (x * cosine - y * sine), at[1] + scale * (x * sine + y * cosine))


def _arc(at: Sequence[float], radius: float, start: float, stop: float) -> Outline:
    """Points along an arc, both ends included."""
    count = max(2, round(_CIRCLE_POINTS * abs(stop - start) / 360.0))
    return tuple(_polar(at, radius, start + (stop - start) * i / count) for i in range(count + 1))


def _beam(start: Point, stop: Point, width: float, *, overshoot: float = 0.0) -> Outline:
    """A straight beam, lengthened at both ends by ``overshoot``."""
    across, down = stop[0] - start[0], stop[1] - start[1]
    length = math.hypot(across, down)
    ux, uy = across / length, down / length
    nx, ny = -uy * width / 2.0, ux * width / 2.0
    x0, y0 = start[0] - ux * overshoot, start[1] - uy * overshoot
    x1, y1 = stop[0] + ux * overshoot, stop[1] + uy * overshoot
    return ((x0 + nx, y0 + ny), (x1 + nx, y1 + ny), (x1 - nx, y1 - ny), (x0 - nx, y0 - ny))


def _clipped(outline: Outline, window: Outline) -> Outline:
    """The part of an outline inside a convex window (Sutherland & Hodgman, 1974)."""
    area = sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(window, window[1:] + window[:1], strict=True))
    for (x0, y0), (x1, y1) in zip(window, window[1:] + window[:1], strict=True):
        sides = [math.copysign(1.0, area) * ((x1 - x0) * (y - y0) - (y1 - y0) * (x - x0)) for x, y in outline]
        kept: list[Point] = []
        for i, (x, y) in enumerate(outline):
            (px, py), before, here = outline[i - 1], sides[i - 1], sides[i]
            if before * here < 0.0:
                share = before / (before - here)
                kept.append((px + share * (x - px), py + share * (y - py)))
            if here >= 0.0:
                kept.append((x, y))
        outline = tuple(kept)
    return outline
