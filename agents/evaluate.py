"""What a policy is worth on a set of questions.

Accuracy, reward and searching are means over questions with 95 % intervals (:mod:`agents.statistics`). Both of the
paper's search ratios are reported: the share of questions searched at all, and calls over the two the fixed plan makes
(arXiv 2506.20670, section 4.1 and table 1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from agents.policy import Policy
from agents.rollout import MakeEnv, RolloutLimits, rollout
from agents.statistics import Estimate, contrast, mean
from agents.trajectory import Trajectory
from agents.workflows import ON_DEMAND, Workflow
from mmsearch_env.questions import Question

SEARCH_FREE = "search_free"
"""Label of a question that a policy answers without searching."""
SEARCH_REQUIRED = ("search_required", "image_required", "text_required", "both_required")
"""Labels of questions that it answers only with a search: FVQA's one, and those measured here."""
FIXED_PLAN_CALLS = 2
"""Searches the fixed plan makes for every question; the denominator of the call ratio."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Means over one set of questions.

    Attributes:
        questions: how many.
        reward: the environment's return.
        accuracy: the answer metric.
        search_ratio: share of questions with at least one search.
        call_ratio: searches over those the fixed plan would make.
        calls: searches for each question.
        image_searches, text_searches: the same by kind.
        valid: share of turns whose action the environment accepted.
    """

    questions: int
    reward: Estimate
    accuracy: Estimate
    search_ratio: Estimate
    call_ratio: Estimate
    calls: Estimate
    image_searches: Estimate
    text_searches: Estimate
    valid: Estimate


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A policy's scores under one workflow.

    Attributes:
        workflow: its name.
        overall: over all questions played.
        by_category: over the questions of each category.
        search_gap: search ratio on search-required minus search-free questions; None without such labels.
        unplayed: questions that could not be played (unreadable picture, context too short).
        truncated: episodes cut off from outside; they count as they stood.
        tool_errors: failed tool calls.
        outcomes: one row for each question, for tests of differences.
    """

    workflow: str
    overall: Scores
    by_category: Mapping[str, Scores]
    search_gap: Estimate | None
    unplayed: int
    truncated: int
    tool_errors: int
    outcomes: tuple[Outcome, ...]
    trajectories: tuple[Trajectory, ...]

    def to_json(self) -> dict[str, Any]:
        """Everything but the trajectories, as plain data."""
        data = {name: getattr(self, name) for name in ("workflow", "unplayed", "truncated", "tool_errors")}
        return data | {
            "overall": asdict(self.overall),
            "by_category": {name: asdict(scores) for name, scores in self.by_category.items()},
            "search_gap": None if self.search_gap is None else asdict(self.search_gap),
            "outcomes": [asdict(outcome) for outcome in self.outcomes],
        }


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one question.

    Attributes:
        question_id: which.
        cluster: what the question is about; questions about the same are no independent samples.
        category: its label.
        reward: the episode's return.
        accuracy: the answer metric.
        searched: 1 if there was any search.
        image_searches, text_searches: searches of each kind.
        valid: share of turns whose action the environment accepted.
        truncated: 1 if the episode was cut off from outside.
    """

    question_id: str
    cluster: str
    category: str
    reward: float
    accuracy: float
    searched: float
    image_searches: float
    text_searches: float
    valid: float
    truncated: float

    @property
    def calls(self) -> float:
        """Searches of both kinds."""
        return self.image_searches + self.text_searches


def evaluate(
    policy: Policy,
    make_env: MakeEnv,
    questions: Sequence[Question],
    *,
    seed: int,
    workflow: Workflow = ON_DEMAND,
    limits: RolloutLimits | None = None,
    on_episode: Callable[[Trajectory], None] = lambda trajectory: None,
) -> Evaluation:
    """Play every question once. ``make_env`` makes environments with the workflow's rules."""
    groups = rollout(
        policy,
        make_env,
        questions,
        group_size=1,
        seed=seed,
        workflow=workflow,
        limits=limits,
        on_episode=on_episode,
    )
    played = [
        (question, group.trajectories[0])
        for question, group in zip(questions, groups, strict=True)
        if group.trajectories[0].turns
    ]
    outcomes = tuple(_outcome(question, trajectory) for question, trajectory in played)
    categories = sorted({outcome.category for outcome in outcomes})
    return Evaluation(
        workflow=workflow.name,
        overall=scores(outcomes),
        by_category={name: scores([o for o in outcomes if o.category == name]) for name in categories},
        search_gap=search_gap(outcomes),
        unplayed=len(questions) - len(played),
        truncated=sum(trajectory.truncated for _, trajectory in played),
        tool_errors=round(sum(trajectory.counts["n_tool_errors"] for _, trajectory in played)),
        outcomes=outcomes,
        trajectories=tuple(trajectory for _, trajectory in played),
    )


def scores(outcomes: Sequence[Outcome]) -> Scores:
    """Means with intervals over ``outcomes``."""
    clusters = [outcome.cluster for outcome in outcomes]

    def over(value: Callable[[Outcome], float]) -> Estimate:
        return mean([value(outcome) for outcome in outcomes], clusters)

    return Scores(
        questions=len(outcomes),
        reward=over(lambda o: o.reward),
        accuracy=over(lambda o: o.accuracy),
        search_ratio=over(lambda o: o.searched),
        call_ratio=over(lambda o: o.calls / FIXED_PLAN_CALLS),
        calls=over(lambda o: o.calls),
        image_searches=over(lambda o: o.image_searches),
        text_searches=over(lambda o: o.text_searches),
        valid=over(lambda o: o.valid),
    )


def search_gap(outcomes: Sequence[Outcome]) -> Estimate | None:
    """Search ratio on questions that need searching minus on those that do not; None if one kind is missing."""
    return gap_of([[outcome.searched for outcome in outcomes]], outcomes)


def gap_of(values: Sequence[Sequence[float]], outcomes: Sequence[Outcome]) -> Estimate | None:
    """Mean of ``values`` (S, N) on the search-required of ``outcomes`` minus on the search-free; None if a kind
    is missing.
    """
    required = np.array([outcome.category in SEARCH_REQUIRED for outcome in outcomes])
    free = np.array([outcome.category == SEARCH_FREE for outcome in outcomes])
    if not required.any() or not free.any():
        return None
    clusters = [outcome.cluster for outcome in outcomes]
    return contrast(np.asarray(values, dtype=np.float64), clusters, [(1.0, required), (-1.0, free)])


def paired(before: Sequence[Outcome], after: Sequence[Outcome]) -> list[tuple[Outcome, Outcome]]:
    """(before, after) for each question that both played, in the order of ``after``."""
    earlier = {outcome.question_id: outcome for outcome in before}
    return [(earlier[outcome.question_id], outcome) for outcome in after if outcome.question_id in earlier]


def difference(before: Sequence[Outcome], after: Sequence[Outcome], value: Callable[[Outcome], float]) -> Estimate:
    """Mean of ``value`` after minus before over the questions both played, paired by question."""
    pairs = paired(before, after)
    return mean([value(later) - value(earlier) for earlier, later in pairs], [later.cluster for _, later in pairs])


def _outcome(question: Question, trajectory: Trajectory) -> Outcome:
    return Outcome(
        question_id=question.id,
        cluster=question.tags.get("entity", question.id),
        category=question.category,
        reward=trajectory.episode_return,
        accuracy=trajectory.success,
        searched=float(trajectory.n_searches > 0),
        image_searches=trajectory.counts["n_image_search"],
        text_searches=trajectory.counts["n_text_search"],
        valid=sum(turn.valid for turn in trajectory.turns) / len(trajectory.turns),
        truncated=float(trajectory.truncated),
    )
