"""What a picture looks like, as a vector: colours by place, shares of colours, directions of edges.

No neural network: every part is arithmetic on a small copy of the picture. A linear map (:func:`metric`) then weighs
the parts so that what a change of view, light or ground alters counts little: linear discriminant analysis (Fisher,
1936) on disturbed views of invented flags, fitted by :mod:`mmsearch_env.tools.local.fit_metric` and shipped with the
package.
"""

from __future__ import annotations

import hashlib
import io
from functools import lru_cache
from importlib import resources

import numpy as np
import PIL.Image

from mmsearch_env.images import Image

Vector = np.ndarray

_WIDTH, _HEIGHT = 48, 32
_COLUMNS, _ROWS = 12, 8
_EDGE_COLUMNS, _EDGE_ROWS, _DIRECTIONS = 6, 4, 8
_PART_COLUMNS, _PART_ROWS = 3, 2
_LEVELS = 3
_SOFTNESS = 0.02
_TO_XYZ = np.array([[0.4339, 0.3762, 0.1899], [0.2126, 0.7152, 0.0722], [0.0177, 0.1095, 0.8728]], dtype=np.float32)
"""Linear sRGB to XYZ divided by the D65 white point."""

RAW_SIZE = (
    3 * _COLUMNS * _ROWS + _LEVELS**3 * (_PART_COLUMNS * _PART_ROWS + 1) + _EDGE_COLUMNS * _EDGE_ROWS * _DIRECTIONS
)
"""Length of :func:`raw_descriptor`."""


def descriptor(image: Image) -> Vector:
    """The weighed descriptor of a picture; (size,) float32. Near in Euclidean distance means alike."""
    mean, weights = metric()
    weighed: Vector = (raw_descriptor(image) - mean) @ weights
    return weighed


def raw_descriptor(image: Image) -> Vector:
    """All parts before weighing; (RAW_SIZE,) float32."""
    small = image.to_pil().resize((_WIDTH, _HEIGHT), PIL.Image.Resampling.BOX)
    pixels = np.asarray(small)
    colours = _lightness_and_opponents(pixels)
    shares = _palette_table()[_palette_cells(pixels)]
    parts = _block_means(shares, _PART_COLUMNS, _PART_ROWS)
    layout = _block_means(colours, _COLUMNS, _ROWS) - np.array([0.55, 0.0, 0.0], dtype=np.float32)
    whole = parts.mean(axis=(0, 1))
    edges = _edge_directions(colours)
    return np.concatenate(
        [layout.ravel(), np.sqrt(parts).ravel(), 2.0 * np.sqrt(whole), 1.5 * np.sqrt(edges).ravel()], dtype=np.float32
    )


@lru_cache(maxsize=1)
def metric() -> tuple[Vector, Vector]:
    """The shipped mean (RAW_SIZE,) and weights (RAW_SIZE, size) of the linear map."""
    stored = np.load(io.BytesIO(_metric_bytes()), allow_pickle=False).astype(np.float32)
    return stored[:, 0], np.ascontiguousarray(stored[:, 1:])


def metric_digest() -> str:
    """SHA-256 of the shipped map, in hexadecimal: descriptors made with another one do not compare."""
    return hashlib.sha256(_metric_bytes()).hexdigest()


def _metric_bytes() -> bytes:
    return resources.files("mmsearch_env.tools.local").joinpath("metric.npy").read_bytes()


def _lightness_and_opponents(pixels: np.ndarray) -> Vector:
    """CIE L*, a*, b* over 100, 200 and 200; the same shape."""
    linear = _linear_light()[pixels]
    cubes = np.cbrt(linear @ _TO_XYZ.T + np.float32(1e-4))
    x, y, z = cubes[..., 0], cubes[..., 1], cubes[..., 2]
    return np.stack([1.16 * y - 0.16, 2.5 * (x - y), y - z], axis=-1).astype(np.float32)


@lru_cache(maxsize=1)
def _linear_light() -> Vector:
    """The transfer function of sRGB for each of 256 levels."""
    level = np.arange(256) / 255.0
    return np.where(level > 0.04045, ((level + 0.055) / 1.055) ** 2.4, level / 12.92).astype(np.float32)


@lru_cache(maxsize=1)
def _palette_table() -> Vector:
    """How much each of 32 x 32 x 32 colours belongs to each of the 27 palette colours; (32768, 27), rows sum to 1."""
    steps = np.arange(32, dtype=np.uint8) * 8 + 4
    every = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    ends = np.linspace(0, 255, _LEVELS).astype(np.uint8)
    palette = np.stack(np.meshgrid(ends, ends, ends, indexing="ij"), axis=-1).reshape(-1, 3)
    gaps = _lightness_and_opponents(every)[:, None] - _lightness_and_opponents(palette)[None]
    near = np.exp(-np.square(gaps).sum(axis=-1) / _SOFTNESS) + 1e-9
    table: Vector = (near / near.sum(axis=1, keepdims=True)).astype(np.float32)
    return table


def _palette_cells(pixels: np.ndarray) -> np.ndarray:
    """The row of the palette table of each pixel."""
    coarse = (pixels >> 3).astype(np.int64)
    cells: np.ndarray = (coarse[..., 0] * 32 + coarse[..., 1]) * 32 + coarse[..., 2]
    return cells


def _edge_directions(colours: Vector) -> Vector:
    """Strength of edges by place and direction: histograms of oriented gradients (Dalal & Triggs, 2005).

    A gradient is taken from the channel in which it is strongest and shared by the two nearest directions.
    """
    across, down = np.zeros_like(colours), np.zeros_like(colours)
    across[:, 1:-1] = colours[:, 2:] - colours[:, :-2]
    down[1:-1] = colours[2:] - colours[:-2]
    strongest = (across**2 + down**2).argmax(axis=-1)[..., None]
    dx = np.take_along_axis(across, strongest, axis=-1)[..., 0]
    dy = np.take_along_axis(down, strongest, axis=-1)[..., 0]
    place = np.arctan2(dy, dx) % np.float32(np.pi) * np.float32(_DIRECTIONS / np.pi)
    lower = np.floor(place)
    upper_share = place - lower
    strength = np.hypot(dx, dy)
    first = lower.astype(np.int64) % _DIRECTIONS
    votes = np.zeros((*strength.shape, _DIRECTIONS), dtype=np.float32)
    np.put_along_axis(votes, first[..., None], (strength * (1.0 - upper_share))[..., None], axis=-1)
    np.put_along_axis(votes, (first[..., None] + 1) % _DIRECTIONS, (strength * upper_share)[..., None], axis=-1)
    return _block_means(votes, _EDGE_COLUMNS, _EDGE_ROWS)


def _block_means(values: Vector, columns: int, rows: int) -> Vector:
    """Means over ``rows`` x ``columns`` equal blocks of a (height, width, channels) array."""
    height, width, channels = values.shape
    blocks = values.reshape(rows, height // rows, columns, width // columns, channels)
    means: Vector = blocks.mean(axis=(1, 3), dtype=np.float32)
    return means
