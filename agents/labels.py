"""Which searches a question needs: measured for one model, because it depends on what that model knows.

Each question is played along every plan, ``EPISODES`` times at temperature 1. Its label is the cheapest plan that gives
the right answer at least half of the time (the paper labels by the searches its correct rollouts made, arXiv
2506.20670, section 3.3; playing every plan keeps a lucky guess from deciding). A question that no plan answers is
``unsolved``; the paper drops such questions, here they keep their label.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from agents.policy import Policy
from agents.rollout import MakeEnv, RolloutLimits, rollout
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
_PROBE_BYTES = 1 << 20


def measure_labels(
    policy: Policy,
    make_env: Callable[[Workflow], MakeEnv],
    questions: Sequence[Question],
    *,
    seed: int,
    limits: RolloutLimits | None = None,
) -> Labels:
    """Label every question for ``policy``, which must sample at temperature 1.

    Args:
        policy: whose labels they are.
        make_env: workflow -> a maker of environments with that workflow's rules.
        questions: what to label.
        seed: of all episodes.
        limits: how many episodes go on at once.
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
        )
        labels |= {g.question_id: label for g in groups if sum(t.success for t in g.trajectories) >= EPISODES / 2}
        open_questions = [question for question in open_questions if question.id not in labels]
    return Labels.of(questions, labels | {question.id: UNSOLVED for question in open_questions})


@dataclass(frozen=True, slots=True)
class Labels:
    """Labels of questions, each bound to what the question said when it was measured.

    Attributes:
        by_id: question id -> label.
        wordings: question id -> digest of its text and answers.
    """

    by_id: Mapping[str, str]
    wordings: Mapping[str, str]

    @classmethod
    def of(cls, questions: Iterable[Question], by_id: Mapping[str, str]) -> Self:
        """The labels of these questions."""
        wordings = {question.id: _wording(question) for question in questions if question.id in by_id}
        return cls({id_: by_id[id_] for id_ in wordings}, wordings)

    def about(self, questions: Iterable[Question]) -> Labels:
        """The labels of these questions that were measured for these very words."""
        return Labels.of((q for q in questions if self.wordings.get(q.id) == _wording(q)), self.by_id)

    def on(self, questions: QuestionSet) -> QuestionSet:
        """The same questions with their labels as categories; a question without a label keeps its own.

        Raises:
            DataError: a label was measured for other words.
        """
        if not self.by_id:
            return questions
        for question in questions:
            if question.id in self.wordings and self.wordings[question.id] != _wording(question):
                raise DataError(
                    f"{question.id}: expected the question its label was measured for, got other words; measure the "
                    "labels again (`python -m agents label`)"
                )
        named = [replace(q, category=self.by_id.get(q.id, q.category)) for q in questions]
        return QuestionSet(questions.name, named, questions.skipped)


def save_labels(labels: Labels, path: Path, *, weights: Path, under: Mapping[str, Any]) -> Labels:
    """Write labels as JSON, bound to the weights in the folder ``weights``; those of other questions are kept.

    Args:
        labels: what was measured.
        path: of the file.
        weights: folder of the weights.
        under: prompts, limits and what else they were measured under, as plain data.

    Returns:
        All labels now in the file.

    Raises:
        DataError: the file cannot be written.
    """
    kept = labels_in(path, weights=weights, under=under)
    whole = Labels({**kept.by_id, **labels.by_id}, {**kept.wordings, **labels.wordings})
    rows = {id_: [label, whole.wordings[id_]] for id_, label in sorted(whole.by_id.items())}
    beside = path.with_name(f"{path.name}.new")
    try:
        data = {"weights": weights_digest(weights), "measured_under": under, "labels": rows}
        beside.write_text(json.dumps(data, indent=0) + "\n")
        beside.replace(path)
    except OSError as error:
        raise DataError(
            f"{path}: expected to write labels there, got {error.strerror}; choose another --out"
        ) from error
    return whole


def labels_in(path: Path, *, weights: Path, under: Mapping[str, Any]) -> Labels:
    """The labels in a file, if it has some of the weights in the folder ``weights``; else none.

    Raises:
        DataError: the file is no file of labels, or these weights were measured under other conditions.
    """
    if not path.is_file():
        return Labels({}, {})
    data = _read(path)
    if data["weights"] != weights_digest(weights):
        return Labels({}, {})
    if data.get("measured_under") != under:
        raise DataError(
            f"{path}: expected labels measured under {json.dumps(under)}, got "
            f"{json.dumps(data.get('measured_under'))}; choose another --out, or delete the file to measure anew"
        )
    return _labels_of(data)


def load_labels(folder: str | Path) -> Labels:
    """The labels beside a checkpoint; none when it has none.

    Raises:
        DataError: the file is no file of labels, or its labels were measured for other weights.
    """
    path = Path(folder) / LABELS_FILE
    if not path.is_file():
        return Labels({}, {})
    data = _read(path)
    if data["weights"] != weights_digest(Path(folder)):
        raise DataError(
            f"{path}: expected labels of the weights beside it, got those of others; measure them again "
            "(`python -m agents label`)"
        )
    return _labels_of(data)


def weights_digest(folder: Path) -> str:
    """SHA-256 of names, sizes, beginnings and ends of the weight files: enough to tell checkpoints apart, and quick."""
    state = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        with path.open("rb") as file:
            state.update(f"{path.name}:{size}:".encode() + file.read(_PROBE_BYTES))
            file.seek(max(0, size - _PROBE_BYTES))
            state.update(file.read(_PROBE_BYTES))
    return state.hexdigest()


def _labels_of(data: Mapping[str, Any]) -> Labels:
    rows: Mapping[str, tuple[str, str]] = data["labels"]
    return Labels({id_: row[0] for id_, row in rows.items()}, {id_: row[1] for id_, row in rows.items()})


def _read(path: Path) -> Mapping[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        rows = data["labels"].values()
        good = isinstance(data["weights"], str) and {label for label, _ in rows} <= {*PLANS, UNSOLVED}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: expected a file of labels, got {type(error).__name__}; measure them again") from error
    if not good:
        raise DataError(f"{path}: expected labels {', '.join((*PLANS, UNSOLVED))}, got others; measure them again")
    return dict(data)


def _wording(question: Question) -> str:
    return hashlib.sha256(repr((question.text, question.answers)).encode()).hexdigest()[:12]
