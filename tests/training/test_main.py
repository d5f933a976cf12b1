"""The command, with the real model classes (random weights), the real environment and a synthetic world."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import RECIPE

from agents.lmm import LMMPolicy
from agents.lora import LoRASettings
from training.__main__ import main
from training.config.file import read_config
from training.folder import Folder

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def adapter(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that does something, so that the distance from the reference has a gradient."""
    folder = tmp_path_factory.mktemp("adapter")
    policy = LMMPolicy.load(model, lora=LoRASettings())
    for parameter in policy.trainable_parameters():
        parameter.data.normal_(std=0.1)
    policy.save_adapter(folder)
    return folder


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    launcher = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    environment = {name: value for name, value in os.environ.items() if name not in launcher}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-m", "training", *arguments], env=environment, capture_output=True, text=True, timeout=300
    )


# peft asks transformers by a name that transformers is about to drop
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_run_from_beginning_to_end_and_once_more(model: Path, adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    folder = Folder(tmp_path / "run")
    arguments = [str(tmp_path / "recipe.yaml"), f"policy.model={model}", f"output.folder={folder.root}"]
    arguments.append(f"policy.adapter={adapter}")

    done = command(*arguments)
    assert done.returncode == 0, done.stderr
    assert "before → after training, 3 questions" in done.stdout
    for path in (folder.adapter, folder.plot, folder.metrics, folder.tensorboard, folder.transcripts, folder.after):
        assert str(path) in done.stdout
        assert path.exists()
    for number in (1, 2):
        told = (folder.transcripts / f"{number:06d}.md").read_text()
        assert told.startswith(f"# Iteration {number}, question synthetic-1/")
        assert " Accepted: " in told.splitlines()[2]
        headings = [line for line in told.splitlines() if line.startswith("## Episode ")]
        assert sorted(int(n) for line in headings for n in line[11:].split(":")[0].split(",")) == [1, 2]
    lines = [json.loads(text) for text in folder.metrics.read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [1, 2]
    assert all(line["policy/logprob_gap_max"] < 1e-4 for line in lines)
    assert all(line["evaluation/reward"] >= 0.0 for line in lines)
    assert all(line["policy/kl"] > 0.0 for line in lines)
    before, after = (load_file(place / "adapter_model.safetensors") for place in (adapter, folder.adapter))
    assert before.keys() == after.keys()
    assert not any(torch.equal(before[name], after[name]) for name in before)

    again = command(*arguments)
    assert again.returncode == 0, again.stderr
    assert "before → after training, 3 questions" in again.stdout
    assert again.stdout.startswith("trained already: ")
    assert "after training  " not in again.stdout  # nothing is evaluated anew

    other = command(*arguments, "optimiser.learning_rate=1e-3")
    assert other.returncode == 2
    assert "optimiser.learning_rate = 0.001 instead of 1e-05" in other.stderr


def test_a_run_with_a_critic_that_plays_ahead_is_resumed(model: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    folder = Folder(tmp_path / "run")
    arguments = [
        str(tmp_path / "recipe.yaml"),
        f"policy.model={model}",
        f"output.folder={folder.root}",
        *("algorithm.name=ppo", "rollout.staleness=1", "rollout.extra_episodes=1", "output.save_every=2"),
    ]
    for iterations, staleness in ((2, [0, 1]), (4, [0, 1, 0, 1])):
        done = command(*arguments, f"iterations={iterations}")
        assert done.returncode == 0, done.stderr
        lines = [json.loads(text) for text in folder.metrics.read_text().splitlines()]
        assert [line["policy/staleness"] for line in lines] == staleness
    assert all(line["loss/value"] >= 0.0 for line in lines)
    assert all("critic/value" in line for line in lines)
    for kept in (folder.adapter, folder.best, folder.checkpoints / "000004" / "adapter"):
        assert (kept / "critic.safetensors").exists(), kept


def test_a_mistake_is_told_in_one_line_and_ends_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quickstart", "rollout.group_sice=3"]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("ConfigError: rollout.group_sice: unknown key; did you mean 'group_size'?")


def test_a_model_that_is_not_there_is_told(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    missing = command(str(tmp_path / "recipe.yaml"), f"policy.model={tmp_path}", f"output.folder={tmp_path / 'run'}")
    assert missing.returncode == 2
    assert str(tmp_path) in missing.stderr
    assert "Traceback" not in missing.stderr


def test_a_dry_run_says_what_would_happen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    assert main([str(tmp_path / "recipe.yaml"), "--dry-run", "seed=5", "--local_rank=0"]) == 0
    told = capsys.readouterr().out
    assert "seed: 5" in told
    assert "episodes    8 = 2 iterations x 2 questions x 2" in told
    assert not (tmp_path / "runs").exists()


def test_an_old_run_is_set_aside_not_deleted(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "a").write_text(str(number))
        assert Folder(tmp_path / "run").set_aside() == tmp_path / f"run.old-{number}"
    assert (tmp_path / "run.old-1" / "a").read_text() == "1"
    assert Folder(tmp_path / "run").set_aside() is None


def test_help_and_mistakes_do_not_wait_for_torch() -> None:
    code = "import sys, training.__main__; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_bundled_recipes_describe_themselves() -> None:
    assert read_config("quickstart").policy.model == "atlas-tiny"
