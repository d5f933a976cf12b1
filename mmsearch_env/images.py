"""Pictures: the only file that opens image bytes.

Everything that arrives from outside passes :meth:`Image.from_bytes`: size limits before decoding, EXIF rotation,
any mode to RGB, transparency on white. Inside the project a picture is always an :class:`Image`.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import io
import stat
import struct
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Protocol, Self

import numpy as np
import PIL.Image
import PIL.ImageOps

from mmsearch_env.errors import ImageError

MAX_PIXELS = 40_000_000
"""Largest picture that is decoded, in pixels."""
MAX_BYTES = 50_000_000
"""Largest encoded picture that is looked at, in bytes."""
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
"""Kinds of files that are opened, in Pillow's words. Of what else Pillow knows, some starts a programme (EPS)."""
BAND_PIXELS = 1_000_000
"""Pixels of a deep picture that are converted together."""

BBox = tuple[float, float, float, float]
"""Left, top, right, bottom as fractions of width and height, 0 <= left < right <= 1 and 0 <= top < bottom <= 1."""
FULL_FRAME: BBox = (0.0, 0.0, 1.0, 1.0)


class ImageSource(Protocol):
    """Something that can produce a picture when it is needed."""

    def load(self) -> Image:
        """The picture. Raises ImageError if it cannot be read."""
        ...


class Image:
    """An immutable RGB picture.

    Two images are equal when their pixels are; ``digest`` is the key by which the project caches what it
    computes from a picture.
    """

    def __init__(self, pixels: np.ndarray) -> None:
        """Args: pixels: (height, width, 3) uint8; copied, and kept read-only."""
        if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or 0 in pixels.shape:
            raise ImageError(
                f"expected a non-empty (height, width, 3) uint8 array, got {pixels.shape} {pixels.dtype}; "
                "convert the picture to 8-bit RGB first"
            )
        own = np.array(pixels, dtype=np.uint8, order="C", copy=True)
        own.flags.writeable = False
        self.pixels: np.ndarray = own

    @classmethod
    def from_pil(cls, picture: PIL.Image.Image) -> Self:
        """Any PIL picture, EXIF rotation applied, transparency laid on white."""
        picture.load()
        turned = _upright(picture)
        if turned.mode in ("RGBA", "LA", "PA") or "transparency" in turned.info:
            layer = turned.convert("RGBA")
            ground = PIL.Image.new("RGBA", layer.size, "white")
            turned = PIL.Image.alpha_composite(ground, layer)
        elif turned.mode.startswith(("I", "F")):
            turned = _to_eight_bit(turned)
        return cls(np.asarray(turned.convert("RGB")))

    @classmethod
    def from_bytes(cls, data: bytes, *, name: str = "picture") -> Self:
        """Decode an encoded picture (PNG, JPEG, WebP, GIF, ...).

        Raises:
            ImageError: not a picture, truncated, or larger than ``MAX_BYTES`` / ``MAX_PIXELS``.
        """
        with _reading(name), _opened(io.BytesIO(data), name) as picture:
            return cls.from_pil(picture)

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Decode a picture file. Raises ImageError with the path, as :meth:`from_bytes` does."""
        path = Path(path)
        with _reading(str(path)), open_file(path) as file, _opened(file, str(path)) as picture:
            return cls.from_pil(picture)

    @property
    def width(self) -> int:
        """Pixels across."""
        return int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        """Pixels down."""
        return int(self.pixels.shape[0])

    @cached_property
    def digest(self) -> str:
        """SHA-256 of size and pixels, in hexadecimal."""
        state = hashlib.sha256(f"{self.width}x{self.height}:".encode())
        state.update(self.pixels.tobytes())
        return state.hexdigest()

    def load(self) -> Image:
        """Itself: a picture in memory is its own :class:`ImageSource`."""
        return self

    def crop(self, bbox: BBox) -> Image:
        """The part inside ``bbox``, at least one pixel wide and high."""
        left, top, right, bottom = bbox
        x0 = min(int(left * self.width), self.width - 1)
        y0 = min(int(top * self.height), self.height - 1)
        x1 = max(x0 + 1, round(right * self.width))
        y1 = max(y0 + 1, round(bottom * self.height))
        return Image(self.pixels[y0:y1, x0:x1])

    def resized(self, width: int, height: int) -> Image:
        """Scaled to ``width`` x ``height`` pixels (area-aware bicubic)."""
        return Image(np.asarray(self.to_pil().resize((width, height), PIL.Image.Resampling.BICUBIC)))

    def to_pil(self) -> PIL.Image.Image:
        """A PIL copy."""
        return PIL.Image.fromarray(self.pixels)

    def to_png(self) -> bytes:
        """Encoded as PNG."""
        buffer = io.BytesIO()
        self.to_pil().save(buffer, format="PNG")
        return buffer.getvalue()

    def to_data_url(self) -> str:
        """Encoded as a ``data:image/png;base64,`` URL."""
        return "data:image/png;base64," + base64.b64encode(self.to_png()).decode("ascii")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Image) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Image({self.width}x{self.height})"

    def __getstate__(self) -> dict[str, Any]:
        return {"pixels": self.pixels}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["pixels"])  # type: ignore[misc]


def clean_bbox(box: Sequence[float]) -> BBox:
    """Make any four numbers a usable box.

    Coordinates are clamped to [0, 1] and sorted; a box with NaN or without area becomes the full frame.
    """
    values = np.asarray(box, dtype=np.float64)
    if values.shape != (4,) or not np.isfinite(values).all():
        return FULL_FRAME
    left, right = sorted(np.clip(values[[0, 2]], 0.0, 1.0).tolist())
    top, bottom = sorted(np.clip(values[[1, 3]], 0.0, 1.0).tolist())
    if right - left <= 0.0 or bottom - top <= 0.0:
        return FULL_FRAME
    return (left, top, right, bottom)


def open_file(path: Path) -> BinaryIO:
    """A picture's file, open for reading: a pipe or a device could keep its reader waiting for ever.

    Raises:
        ImageError: something else than a file or a folder.
        OSError: there is none, or it may not be read.
        ValueError: no file can have this name.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise ImageError(f"{path}: expected a file, got a pipe, a socket or a device; check the path")
    return path.open("rb")


def check_header(file: BinaryIO, *, name: str) -> None:
    """Look at kind and size of an encoded picture without decoding it.

    Raises:
        ImageError: not a picture, or larger than ``MAX_BYTES`` / ``MAX_PIXELS``. A picture that is cut off after its
            header passes here and is found when it is decoded.
    """
    with _reading(name), _opened(file, name):
        pass


@contextlib.contextmanager
def _reading(name: str) -> Iterator[None]:
    """Give every way in which a decoder can fail one name."""
    try:
        yield
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError(f"{name}: expected a picture file, got none; check the path") from error
    except PIL.UnidentifiedImageError as error:
        raise ImageError(f"{name}: expected a readable picture, got bytes of no known kind; replace it") from error
    except Exception as error:  # decoders raise whatever they like
        raise ImageError(
            f"{name}: expected a readable picture, got {type(error).__name__}: {error}; replace it"
        ) from error


@contextlib.contextmanager
def _opened(file: BinaryIO, name: str) -> Iterator[PIL.Image.Image]:
    """The picture with its header read and its size found to be allowed."""
    size_bytes = file.seek(0, io.SEEK_END)
    file.seek(0)
    if size_bytes > MAX_BYTES:
        raise ImageError(f"{name}: expected at most {MAX_BYTES} bytes, got {size_bytes}; shrink the file")
    with PIL.Image.open(file, formats=_known_formats()) as picture:
        width, height = picture.size
        if width * height > MAX_PIXELS:
            raise ImageError(
                f"{name}: expected at most {MAX_PIXELS} pixels, got {width} x {height}; shrink the picture"
            )
        yield picture


@functools.cache
def _known_formats() -> tuple[str, ...]:
    """Those of ``FORMATS`` that this Pillow has: older ones know no AVIF."""
    PIL.Image.init()
    return tuple(name for name in FORMATS if name in PIL.Image.OPEN)


def _upright(picture: PIL.Image.Image) -> PIL.Image.Image:
    """Turned as its EXIF says; as it is when the EXIF is damaged, which is common on the web and harmless."""
    try:
        return PIL.ImageOps.exif_transpose(picture)
    except (SyntaxError, ValueError, TypeError, LookupError, OSError, UserWarning, struct.error):
        return picture


def _to_eight_bit(picture: PIL.Image.Image) -> PIL.Image.Image:
    """Stretch a 16-bit, 32-bit or float picture to 0..255; a flat one becomes mid-grey, a missing value the darkest."""
    low, high = _finite_range(picture)
    if high <= low:
        return PIL.Image.new("L", picture.size, 128)
    scaled = np.empty((picture.height, picture.width), dtype=np.uint8)
    for top, values in _bands(picture):
        values = np.clip(np.nan_to_num(values, copy=False, nan=low), low, high)
        scaled[top : top + len(values)] = (values - low) * (255.0 / (high - low))
    return PIL.Image.fromarray(scaled)


def _finite_range(picture: PIL.Image.Image) -> tuple[float, float]:
    """The least and the greatest value; an empty range where nothing is finite."""
    low, high = np.inf, -np.inf
    for _, values in _bands(picture):
        finite = values[np.isfinite(values)]
        low, high = min(low, finite.min(initial=np.inf)), max(high, finite.max(initial=-np.inf))
    return float(low), float(high)


def _bands(picture: PIL.Image.Image) -> Iterator[tuple[int, np.ndarray]]:
    """Some rows at a time: the first one's number and their values, which would fill a gigabyte if taken at once."""
    rows = max(1, BAND_PIXELS // max(1, picture.width))
    for top in range(0, picture.height, rows):
        band = picture.crop((0, top, picture.width, min(top + rows, picture.height)))
        yield top, np.array(band, dtype=np.float64)
