"""How often the embedded engine finds what a world's questions need."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mmsearch_env.questions import Question
from mmsearch_env.tools.local.image_index import LocalImageSearch
from mmsearch_env.tools.local.text_index import LocalTextSearch
from mmsearch_env.tools.search_tool import ImageQuery, TextQuery
from mmsearch_env.worlds.entities import IDENTIFY
from mmsearch_env.worlds.wordings import query_text, seeded
from mmsearch_env.worlds.world import World

_DEPTH = 5


@dataclass(frozen=True, slots=True)
class Recall:
    """Share of ``queries`` with a right hit among the first 1, 3 and 5."""

    queries: int
    at_1: float
    at_3: float
    at_5: float

    def __str__(self) -> str:
        return f"recall@1 {self.at_1:.3f}, @3 {self.at_3:.3f}, @5 {self.at_5:.3f} ({self.queries} queries)"


def image_recall(world: World, split: str) -> Recall:
    """A hit is right when its page is about the pictured entity."""
    engine = LocalImageSearch(world.pages)
    subject = {page.url: page.subject for page in world.page_images}
    ranks = []
    for question in world.questions(split):
        found = engine.search_many([ImageQuery(question.load_image())], top_k=_DEPTH)[0]
        ranks.append(_first(subject[hit.url] == question.tags["entity"] for hit in found.hits))
    return _recall(ranks)


def text_recall(world: World, split: str) -> Recall:
    """A hit is right when its snippet holds an accepted answer; queries name the entity and the relation."""
    engine = LocalTextSearch(world.pages)
    ranks = []
    for question in world.questions(split):
        if question.tags["relation"] == IDENTIFY:
            continue
        found = engine.search_many([TextQuery(_named_query(world, question))], top_k=_DEPTH)[0]
        ranks.append(_first(holds(hit.snippet, question.answers) for hit in found.hits))
    return _recall(ranks)


def holds(text: str, answers: Iterable[str]) -> bool:
    """Whether a text has one of the answers as whole words."""
    return any(re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", text, re.IGNORECASE) for answer in answers)


def _named_query(world: World, question: Question) -> str:
    wording = seeded("recall", question.id).randrange(1 << 16)
    return query_text(world.entity(question.tags["entity"]), question.tags["relation"], wording)


def _first(right: Iterable[bool]) -> int:
    return next((rank for rank, is_right in enumerate(right) if is_right), _DEPTH)


def _recall(ranks: Sequence[int]) -> Recall:
    total = max(1, len(ranks))
    at_1, at_3, at_5 = (sum(rank < depth for rank in ranks) / total for depth in (1, 3, _DEPTH))
    return Recall(len(ranks), at_1, at_3, at_5)
