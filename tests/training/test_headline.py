"""The headline command, from training to the table, on a random tiny model and a few questions."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "agents"))

from families import adapted_policy

from agents.labels import LABELS_FILE, Labels, save_labels
from mmsearch_env.worlds import load_world
from training.headline import main

WORLD = "synthetic:seed=1,entities=20"
SETTINGS = (
    "iterations=1",
    f"env.world={WORLD}",
    "rollout.questions_per_iteration=2",
    "rollout.group_size=2",
    "rollout.max_new_tokens=6",
    "rollout.max_context_tokens=700",
    "evaluation.questions=6",
    "evaluation.every=0",
    "policy.lora_rank=2",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    policy = adapted_policy("qwen2_5_vl")
    policy.model.unload().save_pretrained(folder)
    policy.renderer.processor.save_pretrained(folder)
    questions = load_world(WORLD).questions("all")
    rng = random.Random(0)
    labels = {question.id: rng.choice(("search_free", "both_required")) for question in questions}
    save_labels(Labels.of(questions, labels), folder / LABELS_FILE, weights=folder, under={})
    return folder


def headline(model: Path, folder: Path, *more: str) -> int:
    place = ("--folder", str(folder), "--seeds", "3", "--processes", "1", "--recipe", "headline")
    return main([*place, *SETTINGS, f"policy.model={model}", *more])


def test_it_trains_plays_and_compares_and_does_nothing_twice(model: Path, tmp_path: Path) -> None:
    assert headline(model, tmp_path) == 1  # a random model holds hardly any claim
    found = json.loads((tmp_path / "headline.json").read_text())
    assert len(found["claims"]) == 9
    assert 0 <= found["unsolved"] < 1
    assert {claim["name"]: claim["measured"] for claim in found["claims"]}["search gap"] != "no labelled questions"
    played = sorted(tmp_path.glob("*-*.json"))
    assert [path.stem for path in played] == [
        "seed-3-fixed_rag",
        "seed-3-on_demand",
        "untrained-direct",
        "untrained-fixed_rag",
        "untrained-on_demand",
    ]
    assert len(json.loads(played[0].read_text())["outcomes"]) == 6
    before = {path: path.stat().st_mtime_ns for path in played}
    played[0].write_text("cut off in the mid")
    assert headline(model, tmp_path) == 1
    again = {path: path.stat().st_mtime_ns for path in played}
    assert [path for path in played if before[path] != again[path]] == played[:1]
    assert len(json.loads(played[0].read_text())["outcomes"]) == 6


def test_nothing_is_trained_without_labels(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(model, bare, ignore=shutil.ignore_patterns(LABELS_FILE))
    assert headline(bare, tmp_path / "runs") == 2
    assert "expected questions labelled for this model" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_mistake_is_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--folder", str(tmp_path), "optimiser.learning_rat=1"]) == 2
    assert "learning_rat" in capsys.readouterr().err


CHILD = """
import pathlib, signal, sys, time
said = pathlib.Path(sys.argv[1])
signal.signal(signal.SIGTERM, lambda *_: said.write_text(said.read_text() + "asked "))
said.write_text("ready ")
end = time.monotonic() + 1.5
while time.monotonic() < end:
    time.sleep(0.05)
said.write_text(said.read_text() + "ended")
sys.exit(3)
"""
PARENT = "import sys; from training.launching import _run; sys.exit(_run([sys.executable, '-c', *sys.argv[1:]]))"


def test_a_signal_reaches_the_training_once_and_is_waited_for(tmp_path: Path) -> None:
    """Sent to the whole group of processes, as terminals and schedulers do."""
    said = tmp_path / "said"
    with subprocess.Popen([sys.executable, "-c", PARENT, CHILD, str(said)], start_new_session=True) as process:
        deadline = time.monotonic() + 60
        while not said.is_file() or said.read_text() != "ready ":
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(60) == 3
    assert said.read_text() == "ready asked ended"
