"""What is claimed of a policy trained to search on demand, as pure functions of what was played.

The claims are MMSearch-R1's headline in the small (arXiv 2506.20670, table 1 and finding 1): as accurate as a fixed
plan that always searches twice, with far fewer searches, because it searches where it has to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from agents.evaluate import SEARCH_FREE, SEARCH_REQUIRED, Estimate, Outcome, difference, estimate, search_gap

UNTRAINED = "untrained"
"""Name of the weights before training; the others are named after their seed."""
Played = dict[tuple[str, str], tuple[Outcome, ...]]
"""(weights, workflow) -> what came of every test question."""

MAX_CALL_SHARE = 0.70
MIN_SEARCH_GAP = 0.40
MIN_RAG_ON_REQUIRED = 0.70
MIN_DIRECT_ON_FREE = 0.90


@dataclass(frozen=True, slots=True)
class Claim:
    """One line of the table: what is claimed, the bar, what was measured, and whether it holds."""

    name: str
    bar: str
    measured: str
    holds: bool

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def claims(played: Played, *, test_only: frozenset[str] = frozenset()) -> list[Claim]:
    """Every claim, seeds pooled by question.

    Args:
        played: the untrained weights under all workflows, each seed's under on-demand and the fixed plan.
        test_only: ids of the questions about entities that occur in test only.
    """
    demand = _pooled(played, "on_demand")
    trained_rag, untrained_rag = _pooled(played, "fixed_rag"), played[UNTRAINED, "fixed_rag"]
    untrained = played[UNTRAINED, "on_demand"]
    return [
        _at_least("trained on-demand accuracy, over RAG with untrained weights", demand, untrained_rag),
        _at_least("trained on-demand accuracy, over RAG with trained weights", demand, trained_rag),
        _calls(demand, trained_rag),
        _gain("reward over untrained on-demand", untrained, demand, lambda o: o.reward),
        _gain("accuracy over untrained on-demand", untrained, demand, lambda o: o.accuracy),
        _gap("search gap", demand, MIN_SEARCH_GAP),
        _gap("search gap, entities that occur in test only", [o for o in demand if o.question_id in test_only], 0.0),
        _sanity("untrained RAG on search-required questions", untrained_rag, SEARCH_REQUIRED, MIN_RAG_ON_REQUIRED),
        _sanity("direct answers on search-free ones", played[UNTRAINED, "direct"], (SEARCH_FREE,), MIN_DIRECT_ON_FREE),
    ]


def _pooled(played: Mapping[tuple[str, str], Sequence[Outcome]], workflow: str) -> list[Outcome]:
    """Means over seeds, question by question: the seeds share the questions, so they are no independent samples."""
    seeds = [outcomes for (weights, name), outcomes in played.items() if weights != UNTRAINED and name == workflow]
    return [_mean(same) for same in zip(*seeds, strict=True)]


def _mean(same: Sequence[Outcome]) -> Outcome:
    def over(value: Callable[[Outcome], float]) -> float:
        return float(np.mean([value(outcome) for outcome in same]))

    return Outcome(
        question_id=same[0].question_id,
        category=same[0].category,
        reward=over(lambda o: o.reward),
        accuracy=over(lambda o: o.accuracy),
        searched=over(lambda o: o.searched),
        image_searches=over(lambda o: o.image_searches),
        text_searches=over(lambda o: o.text_searches),
        valid=over(lambda o: o.valid),
    )


def _at_least(name: str, mine: Sequence[Outcome], other: Sequence[Outcome]) -> Claim:
    gain = difference(other, mine, lambda outcome: outcome.accuracy)
    values = [float(np.mean([o.accuracy for o in side])) for side in (mine, other)]
    return Claim(name, "at least 0", f"{values[0]:.3f} against {values[1]:.3f}: {gain}", gain.mean >= 0)


def _calls(mine: Sequence[Outcome], other: Sequence[Outcome]) -> Claim:
    share = sum(o.calls for o in mine) / max(1.0, sum(o.calls for o in other))
    bar = f"at most {MAX_CALL_SHARE:.0%}"
    return Claim("its searches, as a share of RAG's", bar, f"{share:.1%}", share <= MAX_CALL_SHARE)


def _gain(
    name: str, before: Sequence[Outcome], after: Sequence[Outcome], value: Callable[[Outcome], float]
) -> Claim:
    gain = difference(before, after, value)
    return Claim(name, "interval above 0", str(gain), gain.low > 0)


def _gap(name: str, outcomes: Sequence[Outcome], least: float) -> Claim:
    gap = search_gap(outcomes)
    bar = f"at least {least:.0%}" if least else "interval above 0"
    if gap is None:
        return Claim(name, bar, "no labelled questions", False)
    return Claim(name, bar, str(gap), gap.mean >= least if least else gap.low > 0)


def _sanity(name: str, outcomes: Sequence[Outcome], categories: Sequence[str], least: float) -> Claim:
    found: Estimate = estimate([o.accuracy for o in outcomes if o.category in categories])
    return Claim(name, f"at least {least:.0%}", str(found), found.mean >= least)
