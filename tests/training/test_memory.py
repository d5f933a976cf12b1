"""The estimate of memory against what is really allocated."""

from __future__ import annotations

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from agents.lmm import LMMPolicy
from agents.scorer import base_model
from mmsearch_env.errors import ConfigError
from training.config import RunConfig
from training.config.file import read_config
from training.engine import Engine, Place
from training.memory import Memory, architecture, described, estimate, kept_for_gradient, packed_group, shapes_of

TOKENS = 200


def tiny(*overrides: str) -> RunConfig:
    return read_config("quickstart", overrides)


@pytest.fixture(scope="module")
def policy() -> LMMPolicy:
    from training.compose import build_policy

    return build_policy(tiny(), device=torch.device("cpu"))


def allocated(policy: LMMPolicy) -> int:
    """What stays allocated after the language model has run one group, by the allocator's own books."""
    network = base_model(policy.model)
    ids = torch.zeros((1, TOKENS), dtype=torch.long)
    places = torch.zeros((3, 1, TOKENS), dtype=torch.long)
    policy.model.train()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as books:
        out = network.model(
            input_ids=ids,
            attention_mask=torch.ones((1, 1, 1, 1), dtype=torch.bool),
            position_ids=places,
            attend=packed_group(TOKENS, ids.device),
            use_cache=False,
        )
    policy.model.eval()
    assert out.last_hidden_state.requires_grad
    return sum(event.self_cpu_memory_usage for event in books.key_averages())


def test_activations_are_those_that_the_allocator_counts(policy: LMMPolicy) -> None:
    shapes = shapes_of(tiny())
    assert shapes.activation_bytes * TOKENS == pytest.approx(allocated(policy), rel=0.15)
    # shapes keep what numbers do, but for attention's scores, which have a kernel of their own there
    assert kept_for_gradient(shapes.model, 32) == pytest.approx(kept_for_gradient(policy.model, 32), rel=0.1)


def test_activations_that_are_made_anew_are_not_kept(policy: LMMPolicy) -> None:
    plain, anew = shapes_of(tiny()), shapes_of(tiny("engine.gradient_checkpointing=true"))
    assert anew.activation_bytes < 0.35 * plain.activation_bytes
    assert anew.layer_bytes == plain.layer_bytes > 0


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_parameters_and_moments_are_those_that_training_holds(policy: LMMPolicy, place: Place, stage: int) -> None:
    config = tiny(f"engine.zero_stage={stage}")
    found = estimate(config, shapes_of(config), processes=1)
    trained = [one for one in policy.model.parameters() if one.requires_grad]
    frozen = {one.untyped_storage()._cdata: one.nbytes for one in policy.model.parameters() if not one.requires_grad}
    assert found.frozen == sum(frozen.values())
    if stage == 3:  # the module itself is taken apart there
        return
    engine = Engine(policy.scorer, place=place, zero_stage=stage)
    engine.backward(sum(one.square().sum() for one in trained))  # type: ignore[arg-type]
    engine.step(0.0)
    moments = [value for state in engine._adamw.state.values() for value in state.values() if value.numel() > 1]
    assert found.optimiser == sum(value.nbytes for value in moments)
    masters = sum(one.nbytes for group in engine._adamw.param_groups for one in group["params"])
    own = sum(one.nbytes for one in trained)
    assert found.trained == (own if stage == 0 else own + masters)
    assert found.gradients == own
    engine.close()


def test_processes_share_what_the_stage_says() -> None:
    def of(stage: int) -> Memory:
        config = tiny(f"engine.zero_stage={stage}")
        return estimate(config, shapes_of(config), processes=4)

    none, moments, gradients, everything = map(of, range(4))
    assert moments.optimiser == none.optimiser / 4 and moments.gradients == none.gradients
    assert gradients.gradients == none.gradients / 4 and gradients.frozen == none.frozen
    assert everything.frozen == none.frozen / 4
    assert none.learning > moments.learning > gradients.learning > everything.learning


def test_a_large_model_is_laid_out_without_its_weights() -> None:
    shapes = shapes_of(read_config("qwen2_5_vl_7b"))
    assert shapes.frozen == 8_292_166_656
    assert shapes.trained == 161_480_704  # rank 64 on seven projections of 28 layers
    assert all(one.is_meta for one in shapes.model.parameters())
    lines = described(read_config("qwen2_5_vl_7b"), processes=8)
    assert "8,292,166,656 frozen" in lines[0] and "GiB in each of 8" in lines[1]


def test_an_unknown_model_is_told() -> None:
    with pytest.raises(ConfigError, match="expected a folder, a hub id whose files are at hand, or one of Qwen/"):
        architecture("nobody/nothing")
