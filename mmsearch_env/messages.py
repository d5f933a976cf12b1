"""Messages: the one language in which the environment and its players talk.

A conversation is a tuple of :class:`Message`; a message is a role and a tuple of parts, each a piece of text or a
picture, in reading order.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from mmsearch_env.images import Image

_UNWRITABLE = re.compile("[\x00\ud800-\udfff]")

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class TextPart:
    """A piece of text."""

    text: str


@dataclass(frozen=True, slots=True)
class ImagePart:
    """A picture."""

    image: Image


Part = TextPart | ImagePart


@dataclass(frozen=True, slots=True)
class Message:
    """One entry of a conversation."""

    role: Role
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        """All text parts joined."""
        return "".join(part.text for part in self.parts if isinstance(part, TextPart))

    @property
    def images(self) -> tuple[Image, ...]:
        """All pictures, in order."""
        return tuple(part.image for part in self.parts if isinstance(part, ImagePart))


def to_openai(messages: Iterable[Message]) -> list[dict[str, Any]]:
    """The conversation as OpenAI-style content blocks, pictures as PNG data URLs."""
    return [{"role": message.role, "content": [_block(part) for part in message.parts]} for message in messages]


def writable(text: str) -> str:
    """``text`` as any tool, file or tokeniser can take it: no NUL, no half of a surrogate pair."""
    return _UNWRITABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def _block(part: Part) -> dict[str, Any]:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    return {"type": "image_url", "image_url": {"url": part.image.to_data_url()}}
