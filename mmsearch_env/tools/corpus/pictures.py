"""From encoded pictures to thumbnails and vectors, many side by side."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image

from mmsearch_env.errors import ImageError
from mmsearch_env.images import Image
from mmsearch_env.tools.corpus.encoders import ImageEncoder, prepared_encoder

THUMBNAIL_PX = 160
"""Longest side of the picture shown with a hit."""
_CHUNK = 16
_JPEG_QUALITY = 85


@dataclass(frozen=True, slots=True)
class Seen:
    """What is kept of a picture, or why nothing is.

    Attributes:
        thumbnail: JPEG, at most :data:`THUMBNAIL_PX` wide and high.
        vector: float32.
        problem: "" unless the picture cannot be used.
    """

    thumbnail: bytes = b""
    vector: bytes = b""
    problem: str = ""


class PictureReader:
    """Encodes the pictures of a corpus; the encoder is made ready when the first one comes."""

    def __init__(self, spec: str, folder: Path, sample: Callable[[], Sequence[Image]]) -> None:
        """Args: as :func:`~mmsearch_env.tools.corpus.encoders.prepared_encoder`."""
        self._spec, self._folder, self._sample = spec, folder, sample
        self._encoder: ImageEncoder | None = None
        self._pool = ThreadPoolExecutor(max(1, os.cpu_count() or 1))

    @property
    def identity(self) -> str:
        """Of the encoder; "" if no picture has come."""
        return "" if self._encoder is None else self._encoder.identity

    def read(self, pictures: Sequence[bytes], progress: Callable[[int], None]) -> list[Seen]:
        """What is kept of each picture, in order. ``progress`` is told how many are done."""
        if not pictures:
            return []
        if self._encoder is None:
            self._encoder = prepared_encoder(self._spec, self._folder, self._sample)
        chunks = [pictures[start : start + _CHUNK] for start in range(0, len(pictures), _CHUNK)]
        found: list[Seen] = []
        for chunk in self._pool.map(self._chunk, chunks):
            found += chunk
            progress(len(found))
        return found

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(cancel_futures=True)

    def _chunk(self, pictures: Sequence[bytes]) -> list[Seen]:
        assert self._encoder is not None
        images: list[Image | str] = []
        for data in pictures:
            try:
                images.append(Image.from_bytes(data, name="its picture"))
            except ImageError as error:
                images.append(str(error))
        good = [image for image in images if isinstance(image, Image)]
        vectors = iter(np.asarray(self._encoder.encode(good), dtype=np.float32))
        return [
            Seen(_thumbnail(image), next(vectors).tobytes()) if isinstance(image, Image) else Seen(problem=image)
            for image in images
        ]


def _thumbnail(image: Image) -> bytes:
    small = image.to_pil()
    small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), PIL.Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue()
