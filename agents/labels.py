"""Which searches a question needs: measured for one model, because it depends on what that model knows.

Each question is played along every plan, ``EPISODES`` times at temperature 1. Its label is the cheapest plan that gives
the right answer at least half of the time (the paper labels by the searches its correct rollouts made, arXiv
2506.20670, section 3.3; playing every plan keeps a lucky guess from deciding). A question that no plan answers is
``unsolved``; the paper drops such questions, here they keep their label.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from agents.policy import Policy
from agents.rollout import MakeEnv, RolloutLimits, rollout
from agents.trajectory import Trajectory
from agents.workflows import DIRECT, FIXED_RAG, IMAGE_ONLY, TEXT_ONLY, Workflow
from mmsearch_env.errors import DataError
from mmsearch_env.questions import Question, QuestionSet

EPISODES = 8
"""Episodes of each question along each plan."""
PLANS: Mapping[str, Workflow] = {
    "search_free": DIRECT,
    "image_required": IMAGE_ONLY,
    "text_required": TEXT_ONLY,
    "both_required": FIXED_RAG,
}
"""Label -> the plan it stands for, cheapest first."""
UNSOLVED = "unsolved"
"""Label of a question that no plan answers."""
LABELS_FILE = "labels.json"
"""Name of the file of labels beside a checkpoint's weights."""


def measure_labels(
    policy: Policy,
    make_env: Callable[[Workflow], MakeEnv],
    questions: Sequence[Question],
    *,
    seed: int,
    limits: RolloutLimits | None = None,
    on_episode: Callable[[Trajectory], None] = lambda trajectory: None,
) -> dict[str, str]:
    """Label every question for ``policy``, which must sample at temperature 1.

    Args:
        policy: whose labels they are.
        make_env: workflow -> a maker of environments with that workflow's rules.
        questions: what to label.
        seed: of all episodes.
        limits: how many episodes go on at once.
        on_episode: told of every finished episode.
    """
    labels: dict[str, str] = {}
    open_questions = list(questions)
    for label, workflow in PLANS.items():
        if not open_questions:
            break
        groups = rollout(
            policy,
            make_env(workflow),
            open_questions,
            group_size=EPISODES,
            seed=seed,
            workflow=workflow,
            limits=limits,
            on_episode=on_episode,
        )
        labels |= {g.question_id: label for g in groups if sum(t.success for t in g.trajectories) >= EPISODES / 2}
        open_questions = [question for question in open_questions if question.id not in labels]
    return labels | {question.id: UNSOLVED for question in open_questions}


def save_labels(labels: Mapping[str, str], path: Path) -> None:
    """Write labels as JSON, one question a line, in order of the ids."""
    path.write_text(json.dumps(dict(sorted(labels.items())), indent=0) + "\n", encoding="utf-8")


def load_labels(folder: str | Path) -> Mapping[str, str]:
    """The labels beside a checkpoint; empty when it has none.

    Raises:
        DataError: the file is not a mapping of question ids to labels.
    """
    path = Path(folder) / LABELS_FILE
    if not path.is_file():
        return {}
    try:
        labels = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: expected JSON, got {error}; measure the labels again") from error
    if not isinstance(labels, dict) or not set(labels.values()) <= {*PLANS, UNSOLVED}:
        raise DataError(
            f"{path}: expected question ids with labels {', '.join((*PLANS, UNSOLVED))}; measure them again"
        )
    return labels


def labelled(questions: QuestionSet, labels: Mapping[str, str]) -> QuestionSet:
    """The same questions with their labels as categories; without labels nothing changes."""
    if not labels:
        return questions
    named = [dataclasses.replace(q, category=labels.get(q.id, q.category)) for q in questions]
    return QuestionSet(questions.name, named, questions.skipped)
