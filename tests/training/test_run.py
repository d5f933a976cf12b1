"""A whole run in this process: what it keeps of its best moments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bandit import GuessPolicy, GuessTask, guess_questions
from rich.console import Console
from test_acting import Twin

from training import run
from training.compose import adam_settings, build_algorithm
from training.config.file import config_from_mapping
from training.engine import Place
from training.folder import Folder
from training.interrupt import StopRequest
from training.records import read_metrics
from training.train import Counters


def executed(place: Place, folder: Path, **sections: Any) -> Counters:
    config = config_from_mapping(
        {
            "iterations": 8,
            "rollout": {"questions_per_iteration": 6, "group_size": 4},
            "optimiser": {"learning_rate": 0.03},
            "evaluation": {"every": 1},
            "output": {"folder": str(folder), "save_every": 4},
            **sections,
        }
    )
    task = Twin(GuessPolicy(), guess_questions())
    parts = run.Parts(
        policy=task.policy,
        task=task,
        algorithm=build_algorithm(config),
        adam=adam_settings(config),
        test_questions=task.questions,
        questions_during=task.questions,
    )
    return run.execute(config, parts, place, stop=StopRequest(), console=Console(quiet=True))


def test_the_adapter_that_did_best_is_kept(place: Place, tmp_path: Path) -> None:
    executed(place, tmp_path, iterations=16)
    folder = Folder(tmp_path)
    noted = json.loads((folder.best / "evaluation.json").read_text())
    rewards = [line["evaluation/reward"] for line in read_metrics(folder.metrics)]
    assert len(set(rewards)) > 1
    assert noted["evaluation/reward"] == max(rewards)
    assert noted["iteration"] == rewards.index(max(rewards)) + 1
    # its weights are those of then: they earn the same again
    task = GuessTask(GuessPolicy(), guess_questions())
    task.policy.load_adapter(folder.best)
    assert task.evaluate(task.questions).overall.reward.mean == pytest.approx(max(rewards))


def test_the_best_of_iterations_that_are_played_again_is_void(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.best.mkdir()
    (folder.best / "evaluation.json").write_text('{"iteration": 5, "evaluation/reward": 0.9}')
    assert run._best_before(folder, Counters(iteration=6)) == 0.9
    assert run._best_before(folder, Counters(iteration=5)) == -float("inf")
    (folder.best / "evaluation.json").write_text("damaged")
    assert run._best_before(folder, Counters(iteration=6)) == -float("inf")


def test_a_run_played_ahead_is_resumed_as_if_it_had_never_stopped(place: Place, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "rollout": {"questions_per_iteration": 6, "group_size": 4, "staleness": 1},
        "evaluation": {"every": 0},
    }
    executed(place, tmp_path / "unbroken", **settings)
    executed(place, tmp_path / "broken", iterations=4, **settings)
    executed(place, tmp_path / "broken", **settings)
    lines = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("unbroken", "broken")]
    plain = [[{key: line[key] for key in line if "speed/" not in key} for line in read] for read in lines]
    assert plain[0] == plain[1]
    assert [line["policy/staleness"] for line in plain[0]] == [0, 1, 1, 1, 0, 1, 1, 1]
