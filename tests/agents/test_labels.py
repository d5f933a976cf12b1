"""Labels: the cheapest plan that is right, bound to the weights and the questions they were measured with."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from agents.labels import LABELS_FILE, UNSOLVED, Labels, load_labels, measure_labels, save_labels
from agents.policy import Request
from agents.rollout import MakeEnv
from agents.scripted import ScriptedPolicy
from agents.workflows import DIRECT, FIXED_RAG, IMAGE_ONLY, TEXT_ONLY, Workflow
from mmsearch_env.env import MMSearchEnv
from mmsearch_env.errors import DataError
from mmsearch_env.questions import QuestionSet
from mmsearch_env.worlds import load_world

WORLD = "synthetic:seed=1,entities=40"


@pytest.fixture(scope="module")
def questions() -> QuestionSet:
    return QuestionSet("five", list(load_world(WORLD).questions("train"))[:5])


def under(workflow: Workflow) -> MakeEnv:
    return partial(MMSearchEnv, world=WORLD, prompts="brief", **workflow.rules)


def test_the_cheapest_plan_that_is_right_is_the_label(questions: QuestionSet) -> None:
    """A player that is right on question n only under the n-th plan, and on the last one under none."""
    plans = (DIRECT, IMAGE_ONLY, TEXT_ONLY, FIXED_RAG)
    gold = {question.load_image().digest: (n, question.answers[0]) for n, question in enumerate(questions)}

    def say(request: Request) -> str:
        asked, answer = gold[request.conversation[0].images[0].digest]
        said = "".join(message.text for message in request.conversation if message.role == "assistant")
        searched = (said + request.script.action).count("</search>") + 2 * (said + request.script.action).count(
            "<text_search>"
        )
        right = answer if searched >= asked and asked < len(plans) else "wrong"
        if request.script.action.endswith("<text_search>"):
            return "capital</text_search>"
        return f"{right}</answer>" if request.script.action else f"<reason>r</reason><answer>{right}</answer>"

    labels = measure_labels(ScriptedPolicy(say), under, questions, seed=0)
    wanted = ("search_free", "image_required", "text_required", "both_required", UNSOLVED)
    assert labels.by_id == dict(zip(questions.ids, wanted, strict=True))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    return tmp_path


def some(questions: QuestionSet, label: str = "search_free") -> Labels:
    return Labels.of(questions, dict.fromkeys(questions.ids, label))


def test_labels_come_back_and_become_categories(folder: Path, questions: QuestionSet) -> None:
    save_labels(some(questions), folder / LABELS_FILE, weights=folder, under={})
    found = load_labels(folder)
    assert found == some(questions)
    assert {question.category for question in found.on(questions)} == {"search_free"}
    assert load_labels(folder / "elsewhere").on(questions) is questions


def test_labels_of_other_questions_are_kept(folder: Path, questions: QuestionSet) -> None:
    save_labels(some(questions[:3], "search_free"), folder / LABELS_FILE, weights=folder, under={})
    save_labels(some(questions[2:], "text_required"), folder / LABELS_FILE, weights=folder, under={})
    found = load_labels(folder).by_id
    assert [found[i] for i in questions.ids] == ["search_free"] * 2 + ["text_required"] * 3


def test_labels_of_other_weights_are_refused_and_replaced(folder: Path, questions: QuestionSet) -> None:
    save_labels(some(questions), folder / LABELS_FILE, weights=folder, under={})
    (folder / "model.safetensors").write_bytes(b"heavier")
    with pytest.raises(DataError, match="expected labels of the weights beside it"):
        load_labels(folder)
    save_labels(some(questions[:1]), folder / LABELS_FILE, weights=folder, under={})
    assert load_labels(folder).by_id == {questions.ids[0]: "search_free"}


def test_labels_measured_under_other_conditions_are_never_overwritten(folder: Path, questions: QuestionSet) -> None:
    save_labels(some(questions), folder / LABELS_FILE, weights=folder, under={"prompts": "brief"})
    with pytest.raises(DataError, match='measured under {"prompts": "standard"}'):
        save_labels(some(questions[:1]), folder / LABELS_FILE, weights=folder, under={"prompts": "standard"})
    assert load_labels(folder) == some(questions)


def test_labels_of_other_words_are_refused(folder: Path, questions: QuestionSet) -> None:
    save_labels(some(questions), folder / LABELS_FILE, weights=folder, under={})
    reworded = QuestionSet("five", [replace(question, text=question.text + "!") for question in questions])
    with pytest.raises(DataError, match="got other words"):
        load_labels(folder).on(reworded)


@pytest.mark.parametrize("content", ["no json", "[]", '{"weights": "x"}', '{"weights": 3, "labels": {}}'])
def test_a_damaged_file_is_explained(folder: Path, content: str) -> None:
    (folder / LABELS_FILE).write_text(content)
    with pytest.raises(DataError, match="expected"):
        load_labels(folder)


def test_an_unknown_label_is_explained(folder: Path, questions: QuestionSet) -> None:
    save_labels(some(questions), folder / LABELS_FILE, weights=folder, under={})
    data = json.loads((folder / LABELS_FILE).read_text())
    data["labels"][questions.ids[0]][0] = "perhaps"
    (folder / LABELS_FILE).write_text(json.dumps(data))
    with pytest.raises(DataError, match="measure them again"):
        load_labels(folder)
