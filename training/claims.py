"""What is claimed of a policy trained to search on demand, as pure functions of what was played.

The claims are MMSearch-R1's headline in the small (arXiv 2506.20670, table 1 and finding 1): as accurate as a fixed
plan that always searches twice, with far fewer searches, because it searches where it has to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from agents.evaluate import SEARCH_FREE, SEARCH_REQUIRED, Outcome, gap_of, search_gap
from agents.labels import UNSOLVED
from agents.statistics import Estimate, Mask, Values, mean
from agents.workflows import DIRECT, FIXED_RAG, ON_DEMAND
from mmsearch_env.errors import DataError

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


def claims(played: Played, *, test_only: frozenset[str]) -> list[Claim]:
    """Every claim.

    Args:
        played: the untrained weights under all workflows, each seed's under on-demand and the fixed plan.
        test_only: ids of the questions about entities that occur in test only.

    Raises:
        DataError: the weights and workflows did not play the same questions.
    """
    asked = _same_questions(played)
    demand, rag = _seeds(played, ON_DEMAND.name), _seeds(played, FIXED_RAG.name)
    plain_rag, plain = [played[UNTRAINED, FIXED_RAG.name]], [played[UNTRAINED, ON_DEMAND.name]]
    novel = np.array([outcome.question_id in test_only for outcome in asked])
    return [
        _at_least("trained on-demand accuracy, over RAG with untrained weights", demand, plain_rag),
        _at_least("trained on-demand accuracy, over RAG with trained weights", demand, rag),
        _calls(demand, rag),
        _gain("reward over untrained on-demand", plain, demand, lambda o: o.reward),
        _gain("accuracy over untrained on-demand", plain, demand, lambda o: o.accuracy),
        _gap("search gap", demand, np.ones(len(asked), dtype=np.bool_), MIN_SEARCH_GAP),
        _gap("search gap, entities that occur in test only", demand, novel, 0.0),
        _sanity("untrained RAG on search-required questions", plain_rag[0], SEARCH_REQUIRED, MIN_RAG_ON_REQUIRED),
        _sanity(
            "direct answers on search-free ones", played[UNTRAINED, DIRECT.name], (SEARCH_FREE,), MIN_DIRECT_ON_FREE
        ),
    ]


def unsolved_share(played: Played) -> float:
    """Share of the questions that no plan answers with the untrained weights.

    They count in reward, accuracy and calls, but are neither search-free nor search-required. As labels are measured
    with the weights that are compared, this share belongs beside the claims about either kind.
    """
    first = next(iter(played.values()))
    return sum(outcome.category == UNSOLVED for outcome in first) / len(first)


def _same_questions(played: Played) -> Sequence[Outcome]:
    """The outcomes of one of the workflows, after checking that all played the same questions in the same order."""
    first, *others = played.values()
    ids = [outcome.question_id for outcome in first]
    for (weights, workflow), outcomes in played.items():
        if [outcome.question_id for outcome in outcomes] != ids:
            raise DataError(
                f"{weights} under {workflow}: expected the {len(ids)} questions of the others, got {len(outcomes)}; "
                "mend the questions that could not be played"
            )
    return first


def _seeds(played: Played, workflow: str) -> list[Sequence[Outcome]]:
    """The outcomes of each seed, (S, N)."""
    return [outcomes for (weights, name), outcomes in played.items() if weights != UNTRAINED and name == workflow]


def _values(seeds: Sequence[Sequence[Outcome]], value: Callable[[Outcome], float]) -> Values:
    """(S, N) a number for each seed and question."""
    return np.array([[value(outcome) for outcome in outcomes] for outcomes in seeds])


def _gained(
    before: Sequence[Sequence[Outcome]], after: Sequence[Sequence[Outcome]], value: Callable[[Outcome], float]
) -> Estimate:
    """After minus before, question by question; where both have seeds, seed by seed."""
    return mean(_values(after, value) - _values(before, value), [outcome.cluster for outcome in after[0]])


def _each(seeds: Sequence[Sequence[Outcome]], value: Callable[[Outcome], float]) -> str:
    """The mean of every seed."""
    return " ".join(f"{share:.3f}" for share in _values(seeds, value).mean(axis=1))


def _at_least(name: str, mine: Sequence[Sequence[Outcome]], other: Sequence[Sequence[Outcome]]) -> Claim:
    gain = _gained(other, mine, lambda o: o.accuracy)
    said = f"{gain}; seeds {_each(mine, lambda o: o.accuracy)} against {_each(other, lambda o: o.accuracy)}"
    return Claim(name, "at least 0", said, gain.mean >= 0)


def _calls(mine: Sequence[Sequence[Outcome]], other: Sequence[Sequence[Outcome]]) -> Claim:
    share = _values(mine, lambda o: o.calls).mean() / _values(other, lambda o: o.calls).mean()
    said = f"{share:.1%}; calls a question, by seed: {_each(mine, lambda o: o.calls)}"
    return Claim(
        "its searches, as a share of RAG's", f"at most {MAX_CALL_SHARE:.0%}", said, bool(share <= MAX_CALL_SHARE)
    )


def _gain(
    name: str,
    before: Sequence[Sequence[Outcome]],
    after: Sequence[Sequence[Outcome]],
    value: Callable[[Outcome], float],
) -> Claim:
    gain = _gained(before, after, value)
    said = f"{gain}; from {_each(before, value)} to {_each(after, value)}"
    return Claim(name, "interval above 0", said, gain.low > 0)


def _gap(name: str, seeds: Sequence[Sequence[Outcome]], chosen: Mask, least: float) -> Claim:
    kept = [[o for o, keep in zip(outcomes, chosen, strict=True) if keep] for outcomes in seeds]
    gap = gap_of(_values(kept, lambda o: o.searched).tolist(), kept[0])
    bar = f"at least {least:.0%}" if least else "interval above 0"
    if gap is None:
        return Claim(name, bar, "no labelled questions", False)
    each = [one.mean for outcomes in kept if (one := search_gap(outcomes)) is not None]
    said = f"{gap}; seeds {' '.join(f'{value:.3f}' for value in each)}"
    return Claim(name, bar, said, gap.mean >= least if least else gap.low > 0)


def _sanity(name: str, outcomes: Sequence[Outcome], categories: Sequence[str], least: float) -> Claim:
    asked = [outcome for outcome in outcomes if outcome.category in categories]
    found = mean([outcome.accuracy for outcome in asked], [outcome.cluster for outcome in asked])
    return Claim(name, f"at least {least:.0%}", f"{found}; {len(asked)} questions", found.mean >= least)
