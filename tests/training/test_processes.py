"""Runs in processes of their own: two together, killed, stopped, resumed."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("bandit_run.py")
UPDATE = Path(__file__).with_name("lmm_update.py")
ROOT = Path(__file__).parents[2]
LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def run(*arguments: object, processes: int = 1, script: Path = SCRIPT) -> subprocess.CompletedProcess[str]:
    launch = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    )
    environment = {name: value for name, value in os.environ.items() if name not in LAUNCHER}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *launch, str(script), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines without what a clock measured."""
    read = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith("speed/")} for line in read]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    done = run(folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_a_run_leaves_everything_a_reader_expects(unbroken: Path) -> None:
    assert {path.name for path in unbroken.iterdir()} == {
        "adapter",
        "after.json",
        "before.json",
        "checkpoints",
        "metrics.jsonl",
        "recipe.json",
        "tensorboard",
        "transcripts",
    }
    assert [path.name for path in sorted((unbroken / "checkpoints").iterdir())] == ["000004", "000006"]
    assert [line["iteration"] for line in metrics(unbroken)] == [1, 2, 3, 4, 5, 6]


def test_killed_and_resumed_is_the_unbroken_run_bit_for_bit(unbroken: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    killed = run(folder, "--kill-at", 4)
    assert killed.returncode == -9
    # iteration 3 was played after the checkpoint; it is played again
    assert [line["iteration"] for line in metrics(folder)] == [1, 2, 3]
    resumed = run(folder)
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming after iteration 2 of 6" in resumed.stdout
    assert metrics(folder) == metrics(unbroken)
    assert (folder / "adapter" / "adapter.safetensors").read_bytes() == (
        unbroken / "adapter" / "adapter.safetensors"
    ).read_bytes()
    assert (folder / "after.json").read_text() == (unbroken / "after.json").read_text()


def test_killed_again_and_again_also_while_saving_it_is_still_the_unbroken_run(unbroken: Path, tmp_path: Path) -> None:
    """Each time it gets a little further before it dies: during a rollout, or while something is pushed to the disk."""
    folder, deaths = tmp_path / "run", 0
    for number in itertools.count(1):
        strike = ("--kill-at", 1 + number % 3) if number % 4 == 0 else ("--kill-at-sync", 3 * number)
        done = run(folder, *strike)
        assert done.returncode in (0, -9), done.stderr
        if done.returncode == 0:
            break
        deaths += 1
    assert deaths >= 3
    assert metrics(folder) == metrics(unbroken)
    for name in ("adapter/adapter.safetensors", "checkpoints/000006/optimiser.safetensors", "after.json"):
        assert (folder / name).read_bytes() == (unbroken / name).read_bytes(), name


def test_a_rank_that_is_lost_ends_the_run_and_it_is_resumed(unbroken: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    start = time.monotonic()
    lost = run(folder, "--kill-at", 4, "--kill-rank", 1, processes=2)
    assert lost.returncode != 0
    assert time.monotonic() - start < 90
    resumed = run(folder, processes=2)
    assert resumed.returncode == 0, resumed.stderr
    for one, other in zip(metrics(unbroken), metrics(folder), strict=True):
        assert other == pytest.approx(one, abs=1e-5)


def test_sigterm_finishes_the_iteration_saves_and_ends_well(unbroken: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    stopped = run(folder, "--stop-at", 3)
    assert stopped.returncode == 0, stopped.stderr
    assert "stopped after iteration 3 and saved; the same command goes on" in stopped.stdout
    resumed = run(folder)
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming after iteration 3 of 6" in resumed.stdout
    assert metrics(folder) == metrics(unbroken)


def test_two_processes_are_one(unbroken: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = run(folder, processes=2)
    assert done.returncode == 0, done.stderr
    assert len(metrics(folder)) == 6
    assert (folder / "before.json").read_text() == (unbroken / "before.json").read_text()
    for one, two in zip(metrics(unbroken), metrics(folder), strict=True):
        assert two == pytest.approx(one, abs=1e-5)


@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_two_processes_of_any_stage_are_resumed_by_one(unbroken: Path, tmp_path: Path, zero_stage: int) -> None:
    folder = tmp_path / "run"
    begun = run(folder, "--iterations", 4, "--zero-stage", zero_stage, processes=2)
    assert begun.returncode == 0, begun.stderr
    resumed = run(folder)
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming after iteration 4 of 6" in resumed.stdout
    for one, other in zip(metrics(unbroken), metrics(folder), strict=True):
        assert other == pytest.approx(one, abs=1e-5)


def test_a_checkpoint_says_what_the_run_was_made_of(unbroken: Path) -> None:
    state = json.loads((unbroken / "checkpoints" / "000006" / "state.json").read_text())
    assert state["recipe"]["optimiser"]["learning_rate"] == 0.02
    assert state["counters"] == {"iteration": 6, "updates": 24, "skipped_in_row": 0, "episodes": 144}


@pytest.fixture(scope="module")
def learnt_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process learns from episodes with pictures, for every family."""
    folder = tmp_path_factory.mktemp("alone")
    done = run(folder, 1, script=UPDATE)
    assert done.returncode == 0, done.stderr
    assert len(list(folder.iterdir())) == 3
    return folder


@pytest.mark.parametrize("zero_stage", [1, 3])
def test_two_processes_learn_what_one_does_from_episodes_with_pictures(
    learnt_alone: Path, tmp_path: Path, zero_stage: int
) -> None:
    """Every family: pictures in the prompt and in later turns, ragged rows, unequal shares that are evened out."""
    done = run(tmp_path, zero_stage, processes=2, script=UPDATE)
    assert done.returncode == 0, done.stderr
    for one in sorted(learnt_alone.iterdir()):
        two = tmp_path / one.name
        measured = [json.loads((folder / "measured.json").read_text()) for folder in (one, two)]
        assert measured[1] == pytest.approx(measured[0], abs=1e-5, rel=1e-4)
        assert measured[0]["policy/logprob_gap_max"] < 1e-4
        for name in ("adapter_model.safetensors", "critic.safetensors"):
            saved, other = load_file(one / name), load_file(two / name)
            assert saved.keys() == other.keys()
            for key, value in saved.items():
                torch.testing.assert_close(other[key], value, atol=1e-5, rtol=1e-4)
