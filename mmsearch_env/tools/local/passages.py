"""The sentences of one text that fit a question best: BM25 with the sentences as documents.

BM25: Robertson & Zaragoza, *The Probabilistic Relevance Framework*, 2009, equation 3.15.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

_K1, _B = 1.2, 0.75
_WORD = re.compile(r"\w+")
_FULL_STOP = re.compile(r"(?<=[.!?])\s+(?=[\w\"'(])")
_LONGEST_SENTENCE = 600


def best_sentences(text: str, question: str, *, most: int) -> str:
    """At most ``most`` sentences of ``text``, in their order; the first ones if none has a word of ``question``."""
    sentences = _sentences(text)
    scores = bm25([_words(sentence) for sentence in sentences], _words(question))
    telling = [place for place in sorted(range(len(scores)), key=lambda place: -scores[place]) if scores[place] > 0.0]
    chosen = sorted(telling[:most] or range(min(most, len(sentences))))
    return " ".join(sentences[place] for place in chosen)


def bm25(documents: Sequence[Sequence[str]], query: Sequence[str]) -> list[float]:
    """The score of each document, a list of words, for a query."""
    counts = [Counter(document) for document in documents]
    average = sum(map(len, documents)) / max(1, len(documents)) or 1.0
    scores = [0.0] * len(documents)
    for word in set(query):
        holding = [place for place, count in enumerate(counts) if word in count]
        weight = math.log(1.0 + (len(documents) - len(holding) + 0.5) / (len(holding) + 0.5))
        for place in holding:
            often = counts[place][word]
            length = 1.0 - _B + _B * len(documents[place]) / average
            scores[place] += weight * often * (_K1 + 1.0) / (often + _K1 * length)
    return scores


def _sentences(text: str) -> list[str]:
    found = [part for line in text.splitlines() for part in _FULL_STOP.split(line.strip())]
    return [sentence[:_LONGEST_SENTENCE] for sentence in found if sentence]


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())
