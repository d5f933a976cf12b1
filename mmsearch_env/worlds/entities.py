"""Entities: what a world's pages tell about and its questions ask about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from mmsearch_env.images import Image

IDENTIFY = "identify"
"""The relation of a question that asks for the entity itself."""

ASKED_RELATIONS = (
    "capital",
    "currency",
    "language",
    "calling_code",
    "internet_domain",
    "demonym",
    "largest_city",
)
"""Relations that questions ask about: each has many distinct values, so guessing does not pay."""

TOLD_RELATIONS = ("continent", "subregion", "neighbour", *ASKED_RELATIONS)
"""Relations that pages tell about."""


@runtime_checkable
class Drawing(Protocol):
    """A picture that can be drawn at any size.

    ``key`` names what is drawn: two drawings with the same key look the same. ``load`` makes it an
    :class:`~mmsearch_env.images.ImageSource`.
    """

    @property
    def key(self) -> str:
        """What is drawn."""
        ...

    def draw(self, height_px: int) -> Image:
        """The picture, ``height_px`` pixels high."""
        ...

    def load(self) -> Image:
        """The picture at its natural size."""
        ...

    def __hash__(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Entity:
    """One thing of a world: a country of the atlas, or an invented one.

    Attributes:
        id: unique within its world, lower case, safe in a URL.
        name: what it is called.
        aliases: other accepted names.
        facts: relation -> values, the first being the one pages tell; every value is an accepted answer.
        drawing: its flag; None when it has no picture.
        article: ``"the"`` when the name takes one inside a sentence.
        asked_about: whether questions may show its picture (False when another entity's picture looks the same).
        former: relation -> values that were true once; pages mention them as near-misses.
    """

    id: str
    name: str
    aliases: tuple[str, ...]
    facts: Mapping[str, tuple[str, ...]]
    drawing: Drawing | None = None
    article: str = ""
    asked_about: bool = True
    former: Mapping[str, tuple[str, ...]] | None = None

    @property
    def spoken(self) -> str:
        """The name as it stands inside a sentence."""
        return f"{self.article} {self.name}" if self.article else self.name

    def fact(self, relation: str) -> str:
        """The first value of a relation; "" when nothing is known."""
        values = self.facts.get(relation, ())
        return values[0] if values else ""
