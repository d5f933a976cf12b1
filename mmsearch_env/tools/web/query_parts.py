"""What engines ask for: the words of a query, its picture as an upload, or a public URL of it."""

from __future__ import annotations

import io
from collections.abc import Callable

import PIL.Image

from mmsearch_env.errors import ToolUnavailable
from mmsearch_env.images import Image
from mmsearch_env.tools.search_tool import ImageQuery, Query, TextQuery

PublicPicture = Callable[[Query], str]
"""The public URL of a query's picture. Raises ToolError if it cannot have one."""

LONGEST_SIDE = 1024
"""Pixels of an uploaded picture's longer side."""
_QUALITIES = (90, 80, 65, 45, 30)


def words(query: Query) -> str:
    """The words of a text query. Raises ToolUnavailable for a picture."""
    if not isinstance(query, TextQuery):
        raise ToolUnavailable(f"expected words, got {type(query).__name__}; use image search")
    return query.text


def picture(query: Query) -> Image:
    """The picture of an image query, cut to its box. Raises ToolUnavailable for words."""
    if not isinstance(query, ImageQuery):
        raise ToolUnavailable(f"expected a picture, got {type(query).__name__}; use text search")
    return query.image.crop(query.bbox)


def as_jpeg(image: Image, *, most_bytes: int) -> bytes:
    """The picture as a JPEG of at most so many bytes, at most :data:`LONGEST_SIDE` pixels long.

    Raises:
        ToolUnavailable: even the smallest form is larger.
    """
    small = image.to_pil()
    small.thumbnail((LONGEST_SIDE, LONGEST_SIDE), PIL.Image.Resampling.LANCZOS)
    for quality in _QUALITIES:
        stream = io.BytesIO()
        small.save(stream, "JPEG", quality=quality, optimize=True)
        if stream.tell() <= most_bytes:
            return stream.getvalue()
    raise ToolUnavailable(f"expected a picture of at most {most_bytes} bytes as JPEG, got a larger one")
