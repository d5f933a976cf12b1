"""The tokeniser of the tiny LMM: what its words are learnt from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmsearch_env.worlds import World
from mmsearch_env.worlds.entities import ASKED_RELATIONS, IDENTIFY
from mmsearch_env.worlds.wordings import asked, query_text
from training.tiny_lmm.architecture import TinySize, trained_tokeniser
from training.tiny_lmm.lessons import Pupil

_PAIRED = ("reason", "search", "text_search", "answer", "information")
TAGS = (*(f"<{end}{name}>" for name in _PAIRED for end in ("", "/")), "<img>")
"""The protocol's tags, each a whole token."""


def tokeniser_of(taught: Pupil, invented: World, size: TinySize) -> Any:
    """A tokeniser trained on what the pupil may see."""
    return trained_tokeniser(texts_of_tokeniser(taught, invented), size, TAGS)


def texts_of_tokeniser(taught: Pupil, invented: World) -> Iterator[str]:
    """What the tokeniser learns its words from."""
    for page in invented.pages[:6000]:
        yield from (page.title, page.text)
    for entity in invented.entities[:2000]:
        for relation in ASKED_RELATIONS:
            yield from (query_text(entity, relation), *asked(relation))
    for _ in range(500):
        yield from asked(IDENTIFY)
    for entity in taught.facts:
        yield from (f" {value}" for relation in ASKED_RELATIONS for value in entity.facts.get(relation, ()))
    for entity in (*taught.flags, *taught.facts):
        yield f" {entity.name}"
