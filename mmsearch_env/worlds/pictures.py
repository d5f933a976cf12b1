"""Question pictures: a clean drawing, photographed badly.

A question never shows the drawing that the image index holds. :class:`QuestionPicture` tilts it, views it from the
side, crops it, lays it on some ground, lights it unevenly, adds noise and saves it as JPEG: all from one seed, and only
when the picture is needed.
"""

from __future__ import annotations

import hashlib
import io
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import PIL.Image

from mmsearch_env.images import Image
from mmsearch_env.worlds.entities import Drawing

Pixels = np.ndarray
"""(height, width, 3) float32, 0..255."""

PICTURE_SIZES = ((112, 140), (140, 140), (168, 112), (168, 140), (196, 112), (224, 112))
"""Width and height of question pictures, in pixels: multiples of 28, at most 32 patches of 28 x 28."""

DRAWN_HEIGHT_PX = 128
"""Height of the clean drawing that is disturbed."""


@dataclass(frozen=True, slots=True)
class Disturbance:
    """How far a picture may stray from the drawing; every value is the largest that is drawn.

    Attributes:
        turn_deg: rotation to either side.
        corner_shift: perspective, as a share of the flag's size by which each corner moves.
        margin: ground left around the flag, as a share of the picture.
        crop: how much of the flag may lie outside the picture on each side, as a share of the flag.
        gain: brightness factor, from 1/gain to gain.
        gamma: from 1/gamma to gamma.
        cast: colour cast, as a share of each channel.
        shade: light fall-off across the picture, as a share.
        noise: standard deviation of the pixel noise, in grey levels.
        jpeg_quality: lowest quality of JPEG, of 100.
    """

    turn_deg: float = 12.0
    corner_shift: float = 0.06
    margin: float = 0.12
    crop: float = 0.08
    gain: float = 1.25
    gamma: float = 1.25
    cast: float = 0.06
    shade: float = 0.25
    noise: float = 10.0
    jpeg_quality: int = 50


USUAL = Disturbance()
"""What question pictures go through."""


@dataclass(frozen=True, slots=True)
class QuestionPicture:
    """A disturbed view of a drawing; an :class:`~mmsearch_env.images.ImageSource`.

    Attributes:
        drawing: what it shows.
        seed: any words; the same drawing and seed give the same pixels.
    """

    drawing: Drawing
    seed: str

    def load(self) -> Image:
        """The picture, of one of :data:`PICTURE_SIZES`; the last ones are kept, as a group plays one question often."""
        return _kept(self.drawing, self.seed)


def disturbed(drawing: Drawing, seed: str, disturbance: Disturbance = USUAL) -> Image:
    """Draw, view, light and store a drawing as ``seed`` says."""
    rng = np.random.default_rng(np.frombuffer(hashlib.sha256(seed.encode()).digest(), dtype=np.uint32))
    clean = drawing.draw(DRAWN_HEIGHT_PX)
    width, height = picture_size(clean.width / clean.height)
    ground = _ground(rng, width, height)
    corners = _corners(rng, disturbance, clean.width / clean.height, width, height)
    scene = _laid_on(clean, ground, corners)
    return _saved(_lit(scene, rng, disturbance), rng, disturbance)


@lru_cache(maxsize=1024)
def _kept(drawing: Drawing, seed: str) -> Image:
    return disturbed(drawing, seed)


def picture_size(aspect: float) -> tuple[int, int]:
    """Width and height in pixels of the picture of a drawing with this width / height."""
    return min(PICTURE_SIZES, key=lambda size: (abs(math.log(size[0] / size[1] / aspect)), -size[0] * size[1]))


def _ground(rng: np.random.Generator, width: int, height: int) -> Pixels:
    """A plain, graded or cloudy ground."""
    first, second = rng.uniform(20.0, 235.0, (2, 3)).astype(np.float32)
    kind = rng.integers(3)
    if kind == 0:
        return np.broadcast_to(first, (height, width, 3)).copy()
    if kind == 1:
        share = _slope(rng, width, height)
    else:
        cloud = PIL.Image.fromarray(rng.integers(0, 256, (4, 5), dtype=np.uint8))
        smooth = cloud.resize((width, height), PIL.Image.Resampling.BICUBIC)
        share = np.asarray(smooth, dtype=np.float32) / 255.0
    mixed: Pixels = first + (second - first) * share[..., None]
    return mixed


def _slope(rng: np.random.Generator, width: int, height: int) -> Pixels:
    """A plane from 0 to 1 in a random direction; (height, width)."""
    angle = rng.uniform(0.0, 2.0 * math.pi)
    x, y = np.linspace(-0.5, 0.5, width, dtype=np.float32), np.linspace(-0.5, 0.5, height, dtype=np.float32)
    plane = np.float32(math.cos(angle)) * x[None, :] + np.float32(math.sin(angle)) * y[:, None]
    slope: Pixels = (plane - plane.min()) / (plane.max() - plane.min())
    return slope


def _corners(rng: np.random.Generator, disturbance: Disturbance, aspect: float, width: int, height: int) -> np.ndarray:
    """Where the flag's corners come to lie, clockwise from the upper left; (4, 2) in pixels."""
    fit = min(width / aspect, height)
    flag_size = np.array([fit * aspect, fit])
    # Between a flag with ground all round and one whose edges leave the picture.
    scale = rng.uniform(1.0 - 2.0 * disturbance.margin, 1.0 + disturbance.crop)
    unit = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])
    unit = unit + rng.uniform(-disturbance.corner_shift, disturbance.corner_shift, (4, 2))
    # Most photographs are held nearly straight: a triangular distribution.
    angle = math.radians(rng.triangular(-1.0, 0.0, 1.0) * disturbance.turn_deg)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    shift = rng.uniform(-0.5, 0.5, 2) * disturbance.crop * flag_size
    placed: np.ndarray = (unit * flag_size * scale) @ turn.T + np.array([width, height]) / 2.0 + shift
    return placed


def _laid_on(clean: Image, ground: Pixels, corners: np.ndarray) -> Pixels:
    """The drawing warped so that its corners lie on ``corners``, over the ground."""
    height, width = ground.shape[:2]
    # A border of one transparent pixel makes the edge of the flag soft.
    bordered = np.pad(clean.pixels, ((1, 1), (1, 1), (0, 0)), mode="edge")
    inside = np.pad(np.full((clean.height, clean.width), 255, dtype=np.uint8), 1)
    layer = PIL.Image.fromarray(np.dstack([bordered, inside]))
    drawn = np.array([[1, 1], [1 + clean.width, 1], [1 + clean.width, 1 + clean.height], [1, 1 + clean.height]])
    warp = _homography(corners, drawn.astype(np.float64))
    warped = layer.transform(
        (width, height), PIL.Image.Transform.PERSPECTIVE, warp.tolist(), PIL.Image.Resampling.BILINEAR
    )
    pixels = np.asarray(warped, dtype=np.float32)
    cover = pixels[..., 3:] / 255.0
    scene: Pixels = pixels[..., :3] * cover + ground * (1.0 - cover)
    return scene


def _homography(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The eight numbers that Pillow needs to find, for a point of the picture, the point of the drawing."""
    rows = []
    for (x, y), (u, v) in zip(source, target, strict=True):
        rows.append([x, y, 1.0, 0.0, 0.0, 0.0, -u * x, -u * y])
        rows.append([0.0, 0.0, 0.0, x, y, 1.0, -v * x, -v * y])
    solution: np.ndarray = np.linalg.solve(np.array(rows), target.reshape(8))
    return solution


def _lit(scene: Pixels, rng: np.random.Generator, disturbance: Disturbance) -> Pixels:
    """Uneven light, a colour cast, another gamma and noise."""
    height, width = scene.shape[:2]
    gain = math.exp(rng.uniform(-1.0, 1.0) * math.log(disturbance.gain))
    cast = 1.0 + rng.uniform(-disturbance.cast, disturbance.cast, 3).astype(np.float32)
    shade = 1.0 - rng.uniform(0.0, disturbance.shade) * _slope(rng, width, height)[..., None]
    gamma = math.exp(rng.uniform(-1.0, 1.0) * math.log(disturbance.gamma))
    light = np.clip(scene / 255.0, 0.0, 1.0) ** np.float32(gamma) * (cast * np.float32(gain)) * shade * 255.0
    sigma = rng.uniform(0.0, disturbance.noise)
    lit: Pixels = light + rng.standard_normal(scene.shape, dtype=np.float32) * np.float32(sigma)
    return lit


def _saved(scene: Pixels, rng: np.random.Generator, disturbance: Disturbance) -> Image:
    """Through JPEG and back."""
    quality = int(rng.integers(disturbance.jpeg_quality, 96))
    buffer = io.BytesIO()
    PIL.Image.fromarray(np.clip(scene, 0.0, 255.0).astype(np.uint8)).save(buffer, format="JPEG", quality=quality)
    with PIL.Image.open(buffer) as stored:
        return Image(np.asarray(stored))
