"""One ranking of two: reciprocal rank fusion.

Cormack, Clarke & Buettcher, *Reciprocal Rank Fusion outperforms Condorcet and individual Rank Learning Methods*, 2009.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mmsearch_env.tools.search_tool import Hit

FADE = 60
"""k of the paper's equation: score = sum of 1 / (k + rank), ranks from 1."""


def fused(rankings: Sequence[Sequence[Hit]], top_k: int) -> list[Hit]:
    """The hits of several rankings, those that stand high in more of them first.

    Args:
        rankings: each best first. A page in several of them keeps its first picture and its first passage.
        top_k: how many at most.
    """
    found: dict[str, Hit] = {}
    scores: dict[str, float] = {}
    for ranking in rankings:
        for rank, hit in enumerate(ranking, start=1):
            before = found.setdefault(hit.url, hit)
            found[hit.url] = replace(
                before, snippet=before.snippet or hit.snippet, thumbnail=before.thumbnail or hit.thumbnail
            )
            scores[hit.url] = scores.get(hit.url, 0.0) + 1.0 / (FADE + rank)
    best = sorted(scores, key=lambda url: (-scores[url], url))[:top_k]
    return [replace(found[url], score=scores[url]) for url in best]
