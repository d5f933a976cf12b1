"""The commands of the package, on a random tiny model."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from families import adapted_policy

from agents.__main__ import main
from agents.labels import LABELS_FILE, Labels, load_labels
from agents.playing import Playing
from mmsearch_env.errors import DataError
from mmsearch_env.questions import Question

WORLD = "synthetic:seed=1,entities=20"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder, and beside it a finished run of a policy on it."""
    folder = tmp_path_factory.mktemp("model")
    policy = adapted_policy("qwen2_5_vl")
    policy.save_adapter(folder.parent / "run" / "adapter")
    policy.model.unload().save_pretrained(folder)
    policy.renderer.processor.save_pretrained(folder)
    recipe = {
        "policy": {"model": str(folder), "dtype": "float32", "system": ""},
        "env": {"world": WORLD, "split": "train", "questions": "", "tools": {}, "prompts": "brief", "max_rounds": 2},
        "rollout": {"max_new_tokens": 5, "max_context_tokens": 700},
        "evaluation": {"temperature": 0.7},
    }
    (folder.parent / "run" / "recipe.json").write_text(json.dumps(recipe))
    return folder


def call(*arguments: object) -> int:
    return main([*map(str, arguments), "--max-new-tokens", "5", "--limit", "4"])


def test_evaluate_scores_workflows_and_writes_json(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scores.json"
    plans = ("--workflow", "direct", "--workflow", "fixed_rag")
    assert call("evaluate", "--model", model, "--world", WORLD, *plans, "--out", out) == 0
    printed = capsys.readouterr().out
    assert "direct" in printed and "fixed_rag" in printed
    direct, rag = json.loads(out.read_text())
    assert direct["overall"]["questions"] == len(rag["outcomes"]) == 4
    assert direct["overall"]["calls"]["mean"] == 0.0
    assert rag["overall"]["image_searches"]["mean"] == 1.0


def test_evaluate_plays_a_run_as_it_was_trained(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = model.parent / "run"
    assert main(["evaluate", "--run", str(run), "--limit", "4"]) == 0
    assert "on_demand" in capsys.readouterr().out
    assert main(["evaluate", "--run", str(run), "--world", WORLD, "--max-new-tokens", "5"]) == 2
    assert "expected no --max-new-tokens, --world beside it" in capsys.readouterr().err
    playing = Playing.of_run(run, device="cpu")
    assert playing.env["max_rounds"] == 2
    assert playing.max_context_tokens == 700
    assert playing.temperature == 0.7
    assert playing.adapter == run / "adapter"


def test_label_writes_beside_the_weights(model: Path) -> None:
    assert call("label", "--model", model, "--world", WORLD) == 0
    assert len(load_labels(model).by_id) == 4
    assert (model / LABELS_FILE).is_file()


def test_two_processes_measure_the_labels_of_one(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agents.__main__._LABELLED_AT_ONCE", 2)
    found = []
    for processes in ("1", "2"):
        out = tmp_path / f"{processes}.json"
        assert call("label", "--model", model, "--world", WORLD, "--out", out, "--processes", processes) == 0
        found.append(json.loads(out.read_text()))
    assert found[0] == found[1]


def test_label_goes_on_and_plays_nothing_twice(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (model / LABELS_FILE).unlink(missing_ok=True)
    asked: list[list[str]] = []

    def measured(policy: object, make_env: object, questions: list[Question], *, seed: int) -> Labels:
        asked.append([question.id for question in questions])
        if len(asked) == 2:
            raise KeyboardInterrupt
        return Labels.of(questions, dict.fromkeys(asked[-1], "search_free"))

    monkeypatch.setattr("agents.labelling.measure_labels", measured)
    monkeypatch.setattr("agents.__main__._LABELLED_AT_ONCE", 3)
    with pytest.raises(KeyboardInterrupt):
        call("label", "--model", model, "--world", WORLD)
    assert call("label", "--model", model, "--world", WORLD) == 0
    assert [len(part) for part in asked] == [3, 1, 1]
    assert asked[2] == asked[1]
    assert call("label", "--model", model, "--world", WORLD) == 0
    assert len(asked) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("evaluate", "--model", "nowhere"), "PolicyError: expected a processor"),
        (("evaluate", "--run", "nowhere"), "DataError: nowhere: expected the folder of a training run"),
        (("evaluate", "--out", "nowhere/scores.json"), "ConfigError: --out: expected a file in a folder that exists"),
        (("evaluate", "--split", "none"), "ConfigError: split: expected one of train"),
    ],
)
def test_mistakes_are_explained(arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_run_that_has_not_ended_is_no_run_to_play(model: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text((model.parent / "run" / "recipe.json").read_text())
    with pytest.raises(DataError, match="expected a finished run"):
        Playing.of_run(tmp_path, device="cpu")


def test_a_dead_end_point_ends_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:  # bound and not listening: nobody answers
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        arguments = ["evaluate", "--endpoint", url, "--model", "any", "--limit", "2", "--out", str(tmp_path / "o.json")]
        assert main(arguments) == 2
    assert "got none of 2" in capsys.readouterr().err
    assert not (tmp_path / "o.json").exists()
