"""Text search over a world's pages: BM25, with the best sentences as the snippet."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from mmsearch_env.errors import ToolUnavailable
from mmsearch_env.tools.local import bm25
from mmsearch_env.tools.local.store import built_once
from mmsearch_env.tools.search_tool import Hit, Query, SearchResult, TextQuery
from mmsearch_env.worlds.world import Page, pages_digest

SNIPPET_CHARACTERS = 110
"""Longest snippet."""
TITLE_BOOST = 1.5
"""How much more a word counts in a title than in the text."""
SENTENCE_BOOST = 2.0
"""How much the best sentence counts beside BM25."""
CANDIDATES = 6
"""Pages judged by their sentences, as a multiple of the hits wanted."""

_VERSION = 2
_HEAP_BYTES = 64_000_000
_SECOND_SENTENCE_SHARE = 0.85
_LENGTH_COST = 0.001
"""Share of its score that a sentence loses for each character."""
_FULL_STOP = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'])")


class LocalTextSearch:
    """A :class:`~mmsearch_env.tools.search_tool.SearchTool` over pages in memory and an index on disk."""

    name = "local text search"

    def __init__(self, pages: Sequence[Page], cache_dir: Path | None = None) -> None:
        """Open the index of ``pages``, building it first if the cache has none.

        Args:
            pages: what can be found.
            cache_dir: the cache folder; the user's by default.
        """
        self._pages = pages
        place = built_once(f"text-v{_VERSION}-{pages_digest(pages)[:24]}", self._build, cache_dir)
        self._index = bm25.opened(place)
        self._searcher = self._index.searcher()

    async def search(self, query: Query, *, top_k: int = 3) -> SearchResult:
        """Pages about the words of a query. Raises ToolUnavailable for a picture."""
        # A query takes well under a millisecond: less than handing it to a thread.
        return self.search_many([query], top_k=top_k)[0]

    def search_many(self, queries: Sequence[Query], *, top_k: int = 3) -> list[SearchResult]:
        """The results of several queries, in order."""
        return [self._result(query, top_k) for query in queries]

    async def aclose(self) -> None:
        """Nothing to free: the index is shared and memory-mapped."""

    def _result(self, query: Query, top_k: int) -> SearchResult:
        if not isinstance(query, TextQuery):
            raise ToolUnavailable(f"{self.name}: expected words, got {type(query).__name__}; use image search")
        words = bm25.query_words(query.text)
        if not words or top_k < 1:
            return SearchResult(())
        # BM25 judges whole pages; the best sentence then judges whether the words stand together.
        weights = self._weights(words)
        found = self._searcher.search(self._boolean(words), CANDIDATES * top_k).hits
        hits = [self._hit(score, address, weights) for score, address in found]
        return SearchResult(tuple(sorted(hits, key=lambda hit: -hit.score)[:top_k]))

    def _boolean(self, words: Sequence[str]) -> Any:
        fields = (("text", 1.0), ("title", TITLE_BOOST))
        return bm25.union(
            self._index.schema, ((field, _forms(word), boost) for word in words for field, boost in fields)
        )

    def _hit(self, score: float, address: Any, weights: Mapping[str, float]) -> Hit:
        page = self._pages[self._searcher.doc(address)["row"][0]]
        passage = best_passage(page, weights)
        return Hit(page.title, page.url, passage.text, float(score) + SENTENCE_BOOST * passage.score)

    def _weights(self, words: Sequence[str]) -> Mapping[str, float]:
        """Inverse document frequency of each word: rare words say more about what is wanted."""
        total = self._searcher.num_docs
        counts = {word: max(self._searcher.doc_freq("text", form) for form in _forms(word)) for word in words}
        return {word: math.log(1.0 + total / (1.0 + count)) for word, count in counts.items()}

    def _build(self, folder: Path) -> None:
        tantivy = bm25.tantivy()
        index = tantivy.Index(_schema(), path=str(folder), reuse=False)
        index.register_tokenizer(bm25.ANALYZER, bm25.analyzer())
        # One thread and one commit make one segment, hence the same ranking everywhere.
        writer = index.writer(heap_size=_HEAP_BYTES, num_threads=1)
        for row, page in enumerate(self._pages):
            document = tantivy.Document()
            document.add_integer("row", row)
            document.add_text("title", page.title)
            document.add_text("text", page.text)
            writer.add_document(document)
        writer.commit()
        writer.wait_merging_threads()


@dataclass(frozen=True, slots=True)
class Passage:
    """The sentences of a page that fit a query best, and how well the first of them does."""

    text: str
    score: float


def best_passage(page: Page, weights: Mapping[str, float]) -> Passage:
    """The sentence that fits the words best, and a second one if it fits nearly as well and has room.

    A sentence scores the summed weight of the query words in it, a short one slightly more than a long one.
    """
    lines = _sentences(page.text)
    if not lines:
        return Passage("", 0.0)
    scores = [_sentence_score(line, weights) for line in lines]
    best, *others = sorted(range(len(lines)), key=lambda i: -scores[i])
    room = SNIPPET_CHARACTERS - len(lines[best]) - 1
    near = [i for i in others if scores[i] >= _SECOND_SENTENCE_SHARE * scores[best] > 0.0 and len(lines[i]) <= room]
    chosen = sorted([best, *near[:1]])
    return Passage(_shortened(" ".join(lines[i] for i in chosen)), scores[best])


def _sentence_score(line: str, weights: Mapping[str, float]) -> float:
    words = _word_set(line)
    found = sum(weight for word, weight in weights.items() if not words.isdisjoint(_forms(word)))
    return found * (1.0 - _LENGTH_COST * len(line))


def _sentences(text: str) -> list[str]:
    """The lines of a text; a line that is too long for a snippet is cut at full stops."""
    found: list[str] = []
    for line in text.splitlines():
        found += [line] if len(line) <= SNIPPET_CHARACTERS else _FULL_STOP.split(line)
    return [sentence.strip() for sentence in found if sentence.strip()]


def _shortened(text: str) -> str:
    """Cut at a word's end, with an ellipsis."""
    if len(text) <= SNIPPET_CHARACTERS:
        return text
    cut = text[: SNIPPET_CHARACTERS - 1]
    return (cut.rsplit(" ", 1)[0] if " " in cut else cut) + "…"


@lru_cache(maxsize=65536)
def _word_set(line: str) -> frozenset[str]:
    return frozenset(bm25.analyzer().analyze(line))


@lru_cache(maxsize=4096)
def _forms(word: str) -> tuple[str, ...]:
    """A word as singular and plural. A stemmer would take France for the franc."""
    if word.endswith("ies") and len(word) > 4:
        return (word, word[:-3] + "y")
    if word.endswith("s") and len(word) > 3:
        return (word, word[:-1])
    if word.endswith("y") and len(word) > 3:
        return (word, word[:-1] + "ies")
    return (word, word + "s")


def _schema() -> Any:
    builder = bm25.tantivy().SchemaBuilder()
    builder.add_integer_field("row", stored=True, indexed=False)
    builder.add_text_field("title", stored=False, tokenizer_name=bm25.ANALYZER)
    builder.add_text_field("text", stored=False, tokenizer_name=bm25.ANALYZER)
    return builder.build()
