"""The real DeepSpeed engine, in this process."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from torch import Tensor, nn

from mmsearch_env.errors import ConfigError, DataError, PolicyError
from training.checkpoint import Checkpoint, latest, write
from training.engine import AdamSettings, Engine, Place, join

ADAM = AdamSettings(beta1=0.8, beta2=0.95, weight_decay=0.1, max_grad_norm=0.5)


def network() -> nn.Module:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    module[0].weight.requires_grad_(False)
    return module


def batch(step: int, rows: int = 6) -> Tensor:
    return torch.randn(rows, 4, generator=torch.Generator().manual_seed(step))


def loss_of(output: Tensor) -> Tensor:
    return output.square().sum() / 10


def take_steps(engine: Engine, steps: range, micro_batches: int) -> list[float]:
    norms = []
    for step in steps:
        for part in batch(step).chunk(micro_batches):
            engine.backward(loss_of(engine.forward(part)))
        norms.append(engine.step(learning_rate=0.01 * (step + 1)))
    return norms


def weights(module: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def plain_steps(module: nn.Module, steps: range) -> list[float]:
    """The same in plain torch."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, betas=(0.8, 0.95), eps=1e-8, weight_decay=0.1)
    norms = []
    for step in steps:
        optimiser.param_groups[0]["lr"] = 0.01 * (step + 1)
        loss_of(module(batch(step))).backward()
        norms.append(float(nn.utils.clip_grad_norm_(trained, 0.5)))
        optimiser.step()
        optimiser.zero_grad()
    return norms


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
@pytest.mark.parametrize("micro_batches", [1, 3, 6])
def test_any_number_of_micro_batches_is_one_batch_of_plain_adamw(
    place: Place, zero_stage: int, micro_batches: int
) -> None:
    module, plain = network(), network()
    engine = Engine(module, place=place, adam=ADAM, zero_stage=zero_stage)
    norms = take_steps(engine, range(4), micro_batches)
    assert norms == pytest.approx(plain_steps(plain, range(4)), rel=1e-5)
    torch.testing.assert_close(weights(module), weights(plain), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_after_a_closed_engine_another_trains_the_same_module(place: Place, zero_stage: int) -> None:
    module, plain = network(), network()
    first = Engine(module, place=place, adam=ADAM, zero_stage=zero_stage)
    take_steps(first, range(2), 1)
    called: list[str] = []
    watched = first._engine.optimizer
    for name in ("reduce_ready_partitions_and_remove_grads", "process_gradients"):
        if hasattr(watched, name):
            setattr(watched, name, lambda *given, name=name, **named: called.append(name))
    first.close()
    plain_steps(plain, range(2))
    second = Engine(module, place=place, adam=ADAM, zero_stage=zero_stage)
    norms = take_steps(second, range(4), 2)
    assert not called, "the closed engine still takes the other's gradients"
    assert norms == pytest.approx(plain_steps(plain, range(4)), rel=1e-5)
    torch.testing.assert_close(weights(module), weights(plain), rtol=1e-5, atol=1e-6)


def test_clipping_was_at_work_in_the_test_above() -> None:
    norms = plain_steps(network(), range(4))
    assert min(norms) < 0.5 < max(norms)


def test_a_gradient_that_is_not_finite_is_dropped(place: Place) -> None:
    module = network()
    engine = Engine(module, place=place, adam=ADAM)
    take_steps(engine, range(1), 1)
    before = weights(module)
    engine.backward(loss_of(engine.forward(batch(1))) * float("nan"))
    assert engine.step(learning_rate=0.1) == float("inf")
    assert torch.equal(weights(module), before)
    assert engine.optimiser_state().steps == 1
    norms = take_steps(engine, range(1, 2), 1)
    assert norms[0] < 100.0


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_a_restored_optimiser_goes_on_bit_for_bit(place: Place, tmp_path: Path, zero_stage: int) -> None:
    module = network()
    engine = Engine(module, place=place, adam=ADAM, zero_stage=zero_stage)
    take_steps(engine, range(3), 2)
    write(
        tmp_path,
        iteration=3,
        save_adapter=lambda folder: (folder / "unused").touch(),
        optimiser=engine.optimiser_state(),
        state={},
        keep=1,
    )
    other = network()
    other.load_state_dict(module.state_dict())
    take_steps(engine, range(3, 6), 2)

    found = latest(tmp_path)
    assert isinstance(found, Checkpoint)
    restored = Engine(other, place=place, adam=ADAM, zero_stage=zero_stage)
    restored.load_optimiser_state(found.optimiser())
    take_steps(restored, range(3, 6), 2)
    assert torch.equal(weights(other), weights(module))


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_parameters_that_learn_at_different_rates_are_restored_too(place: Place, zero_stage: int) -> None:
    faster = replace(ADAM, rates={"2.": 10.0})
    module = network()
    engine = Engine(module, place=place, adam=faster, zero_stage=zero_stage)
    take_steps(engine, range(3), 2)
    state = engine.optimiser_state()
    assert len(state.tensors) == 6
    other = network()
    with engine.gathered():
        other.load_state_dict(module.state_dict())
    restored = Engine(other, place=place, adam=faster, zero_stage=zero_stage)
    restored.load_optimiser_state(state)
    for trained in (engine, restored):
        take_steps(trained, range(3, 5), 2)
    with engine.gathered(), restored.gathered():
        assert torch.equal(weights(other), weights(module))


def test_a_state_of_other_parameters_is_refused(place: Place) -> None:
    engine = Engine(network(), place=place)
    take_steps(engine, range(1), 1)
    other = nn.Linear(4, 2)
    with pytest.raises(DataError, match="got 10 that differ"):
        Engine(other, place=place).load_optimiser_state(engine.optimiser_state())


def test_before_the_first_step_there_is_no_state(place: Place) -> None:
    engine = Engine(network(), place=place)
    state = engine.optimiser_state()
    assert (state.steps, dict(state.tensors)) == (0, {})
    engine.load_optimiser_state(state)


def test_scoring_leaves_no_gradient_and_evaluation_mode(place: Place) -> None:
    module = network()
    engine = Engine(module, place=place)
    assert not engine.score(batch(0)).requires_grad
    assert not module.training
    assert engine.forward(batch(0)).requires_grad
    assert module.training


def test_sums_and_maxima_of_one_process_are_its_own(place: Place) -> None:
    engine = Engine(network(), place=place)
    assert engine.total({"a": 1.5}) == {"a": 1.5}
    assert engine.largest({"a": 1.5}) == {"a": 1.5}


def test_a_policy_that_cannot_be_trained_is_refused(place: Place) -> None:
    with pytest.raises(PolicyError, match="trainable parameters, got none"):
        Engine(network().requires_grad_(False), place=place)
    with pytest.raises(PolicyError, match=r"float32 trainable parameters, got torch\.bfloat16 in weight"):
        Engine(nn.Linear(2, 2).bfloat16(), place=place)


def test_half_a_launcher_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ConfigError, match="got no RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT"):
        join()


def test_gloo_listens_where_the_first_process_is_reached(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default it would listen where this machine's name points to, which other machines may not reach."""
    (loopback,) = (
        name for name, held in psutil.net_if_addrs().items() if any(one.address == "127.0.0.1" for one in held)
    )
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    join()
    assert os.environ["GLOO_SOCKET_IFNAME"] == loopback
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib0")
    join()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "ib0"
