"""A supervised warm start from recorded episodes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from agents.__main__ import main as agents_main
from agents.lmm import LMMPolicy
from agents.lora import LoRASettings
from agents.recording import read_recording
from training import warm_start
from training.engine import Place
from training.warm_start import batch_at


def test_every_pass_goes_over_all_episodes_on_all_ranks() -> None:
    places = [Place(rank, 2, torch.device("cpu")) for rank in range(2)]
    seen = [
        number
        for update in range(5)
        for place in places
        for number in batch_at(update, episodes=10, size=4, seed=3, place=place)
    ]
    assert sorted(seen) == sorted([*range(10)] * 2)
    assert batch_at(1, episodes=10, size=4, seed=3, place=places[0]) == batch_at(
        1, episodes=10, size=4, seed=3, place=places[0]
    )


@pytest.fixture(scope="module")
def recording(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What that model said, sampled."""
    folder = tmp_path_factory.mktemp("recording")
    arguments = ["evaluate", "--model", str(model), "--world", "synthetic:seed=1,entities=12", "--limit", "6"]
    assert agents_main([*arguments, "--temperature", "1", "--max-new-tokens", "12", "--record", str(folder)]) == 0
    return folder


def test_it_learns_to_say_what_was_said(
    model: Path, recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        *("quickstart", str(recording), "--folder", str(tmp_path)),
        *("--least-reward", "-1", "--passes", "60", "--batch", "3"),
        *(f"policy.model={model}", "optimiser.learning_rate=0.05"),
    ]
    assert warm_start.main(arguments) == 0
    episodes = read_recording(recording)
    mask = torch.zeros((len(episodes), max(len(one.loss_mask) for one in episodes)), dtype=torch.bool)
    for row, one in enumerate(episodes):
        mask[row, : len(one.loss_mask)] = torch.tensor(one.loss_mask)

    def likelihood(policy: LMMPolicy) -> float:
        with torch.no_grad():
            return float(policy.scorer(policy.whole_inputs(episodes), mask).logprobs.sum() / mask.sum())

    trained = LMMPolicy.load(model, lora=LoRASettings.stored(tmp_path / "adapter"))
    before = likelihood(trained)
    trained.load_adapter(tmp_path / "adapter")
    assert likelihood(trained) > before + 0.03  # little can be learnt under so small a head, and some is
    written = (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes()
    assert "adapter written to" in capsys.readouterr().out
    assert warm_start.main(arguments) == 0  # nothing is left to do
    assert "trained already, from the same episodes" in capsys.readouterr().out
    assert (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes() == written
    assert warm_start.main([*arguments, "optimiser.learning_rate=0.04"]) == 2
    assert "expected a stage of this recipe" in capsys.readouterr().err


def test_episodes_that_earned_nothing_are_not_learnt_from(
    model: Path, recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["quickstart", str(recording), "--folder", str(tmp_path), f"policy.model={model}"]
    assert warm_start.main(arguments) == 2
    assert "expected episodes with a reward of 0.5 or more, got none of 6" in capsys.readouterr().err
    assert warm_start.main(["quickstart", str(tmp_path), "--folder", str(tmp_path)]) == 2
    assert "expected a recording" in capsys.readouterr().err
