"""The headline's claims, on outcomes made by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agents.evaluate import Outcome
from agents.labels import UNSOLVED
from mmsearch_env.errors import DataError
from training.claims import UNTRAINED, Claim, claims, unsolved_share

LABELS = ("search_free", "search_free", "image_required", "text_required", "both_required")


def outcomes(accuracy: tuple[float, ...], calls: tuple[float, ...]) -> tuple[Outcome, ...]:
    """Forty questions: eight times each of the five."""
    return tuple(
        Outcome(
            question_id=f"q{8 * row + copy}",
            cluster=f"e{copy}",
            category=LABELS[row],
            reward=accuracy[row] - 0.09 * min(calls[row], 1.0),
            accuracy=accuracy[row],
            searched=float(calls[row] > 0),
            image_searches=min(calls[row], 1.0),
            text_searches=max(calls[row] - 1.0, 0.0),
            valid=1.0,
            truncated=0.0,
        )
        for row in range(5)
        for copy in range(8)
    )


RIGHT, WRONG = (1.0,) * 5, (0.0,) * 5
RAG = outcomes((1.0, 0.0, 1.0, 1.0, 1.0), (2.0,) * 5)
JUDICIOUS = outcomes(RIGHT, (0.0, 0.0, 1.0, 1.0, 2.0))
COIN = outcomes((1.0, 0.0, 0.0, 1.0, 0.0), (1.0, 1.0, 1.0, 1.0, 1.0))
DIRECT = outcomes((1.0, 1.0, 0.0, 0.0, 0.0), (0.0,) * 5)
PLAYED = {
    (UNTRAINED, "on_demand"): COIN,
    (UNTRAINED, "direct"): DIRECT,
    (UNTRAINED, "fixed_rag"): RAG,
    ("seed-0", "on_demand"): JUDICIOUS,
    ("seed-0", "fixed_rag"): RAG,
    ("seed-1", "on_demand"): JUDICIOUS,
    ("seed-1", "fixed_rag"): RAG,
}
TEST_ONLY = frozenset(f"q{number}" for number in range(0, 40, 2))


def by_name(found: list[Claim]) -> dict[str, Claim]:
    return {claim.name: claim for claim in found}


def test_a_judicious_policy_holds_every_claim() -> None:
    found = claims(PLAYED, test_only=TEST_ONLY)
    assert [claim.name for claim in found if not claim.holds] == []
    named = by_name(found)
    assert named["its searches, as a share of RAG's"].measured.startswith("40.0%")
    assert named["search gap"].measured.startswith("1.000")
    assert "seeds 1.000 1.000 against 0.800" in named[OVER_RAG].measured


OVER_RAG = "trained on-demand accuracy, over RAG with untrained weights"
SEEDS = ("seed-0", "seed-1")
BROKEN = [
    (SEEDS, "on_demand", outcomes(RIGHT, (2.0,) * 5), {"its searches, as a share of RAG's", "search gap"}),
    (
        (UNTRAINED,),
        "fixed_rag",
        outcomes((1.0, 1.0, 0.0, 0.0, 0.0), (2.0,) * 5),
        {"untrained RAG on search-required questions"},
    ),
    (
        (UNTRAINED,),
        "direct",
        outcomes((0.0, 1.0, 0.0, 0.0, 0.0), (0.0,) * 5),
        {"direct answers on search-free ones"},
    ),
    (
        (UNTRAINED,),
        "on_demand",
        JUDICIOUS,
        {"reward over untrained on-demand", "accuracy over untrained on-demand"},
    ),
]


@pytest.mark.parametrize(("weights", "workflow", "instead", "broken"), BROKEN)
def test_each_claim_can_fail(
    weights: tuple[str, ...], workflow: str, instead: tuple[Outcome, ...], broken: set[str]
) -> None:
    played = {**PLAYED, **{(name, workflow): instead for name in weights}}
    failed = {claim.name for claim in claims(played, test_only=TEST_ONLY) if not claim.holds}
    assert broken <= failed
    assert failed <= broken | {"search gap, entities that occur in test only"} | {
        name for name in failed if workflow == "on_demand" and weights != (UNTRAINED,)
    }


def test_one_useless_seed_widens_the_interval() -> None:
    """One perfect and one useless seed: a mean of 0.5, and an interval that reaches from one to the other."""
    played = {**PLAYED, ("seed-1", "on_demand"): outcomes(WRONG, (2.0,) * 5)}
    found = by_name(claims(played, test_only=TEST_ONLY))
    assert "seeds 1.000 0.000 against 0.800" in found[OVER_RAG].measured
    assert not found[OVER_RAG].holds
    assert not found["accuracy over untrained on-demand"].holds


def test_without_labels_there_is_no_gap() -> None:
    bare = {key: tuple(replace(outcome, category="") for outcome in rows) for key, rows in PLAYED.items()}
    assert by_name(claims(bare, test_only=TEST_ONLY))["search gap"].measured == "no labelled questions"


def test_questions_that_no_plan_answers_are_counted() -> None:
    marked = {
        key: tuple(replace(o, category=UNSOLVED if number < 8 else o.category) for number, o in enumerate(rows))
        for key, rows in PLAYED.items()
    }
    assert unsolved_share(marked) == 0.2
    assert unsolved_share(PLAYED) == 0.0


def test_different_questions_are_refused() -> None:
    with pytest.raises(DataError, match="seed-1 under on_demand: expected the 40 questions"):
        claims({**PLAYED, ("seed-1", "on_demand"): JUDICIOUS[1:]}, test_only=TEST_ONLY)
