"""A killed stage goes on as if it had never stopped."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "agents"))

from families import adapted_policy, qwen2_5_vl

from agents.lmm import LMMPolicy
from agents.trajectory import Completion, FinishReason, Trajectory, Turn
from mmsearch_env.errors import DataError
from mmsearch_env.worlds import load_world
from training.engine import AdamSettings, Place
from training.sft import SupervisedPlan, fit
from training.stages import NOT_KEPT, Stage
from training.tiny_lmm.seeing import SeeingPlan, learn_to_see


class Killed(Exception):
    """Stands for a kill: it comes between two updates."""


def lesson(update: int) -> Sequence[Trajectory]:
    """Some tokens that depend on the update's number only."""
    ids = tuple(40 + (update * 7 + n * 3) % 50 for n in range(12))
    said = Completion("", ids[4:], (0.0,) * 8, FinishReason.STOP)
    turn = Turn(ids[:4], (), said, 0.0, "answer", True)
    return [Trajectory("q", (turn,), True, False, "", 0.0, {}, {}, "")]


def losses_of(place: Place, stage: Stage, *, dies_after: int = 99) -> list[tuple[int, float]]:
    seen: list[tuple[int, float]] = []

    def on_update(update: int, loss: float) -> None:
        seen.append((update, loss))
        if update == dies_after:
            raise Killed

    plan = SupervisedPlan(updates=7, learning_rate=1e-2, warmup=2)
    fit(adapted_policy("qwen2_5_vl"), place, lesson, plan, adam=AdamSettings(), stage=stage, on_update=on_update)
    return seen


def test_supervised_training_goes_on_with_the_same_losses(tmp_path: Path, place: Place) -> None:
    whole = losses_of(place, NOT_KEPT)
    stage = Stage(tmp_path, every=2)
    with pytest.raises(Killed):
        losses_of(place, stage, dies_after=4)
    rest = losses_of(place, stage)
    assert [update for update, _ in rest] == [4, 5, 6]
    assert rest == whole[4:]
    assert losses_of(place, stage) == []


def test_a_stage_of_another_model_is_refused(tmp_path: Path, place: Place) -> None:
    losses_of(place, Stage(tmp_path))
    other = LMMPolicy(*qwen2_5_vl())
    with pytest.raises(DataError, match="expected weights of this model"):
        fit(other, place, lesson, SupervisedPlan(9, 1e-2), adam=AdamSettings(), stage=Stage(tmp_path))


def test_a_stage_of_another_recipe_is_refused(tmp_path: Path, place: Place) -> None:
    losses_of(place, Stage(tmp_path, made_of="seed 1"))
    assert losses_of(place, Stage(tmp_path, made_of="seed 1")) == []
    with pytest.raises(DataError, match="expected a stage of this recipe"):
        losses_of(place, Stage(tmp_path, made_of="seed 2"))


def test_the_tower_goes_on_too(tmp_path: Path, place: Place) -> None:
    entities = [e for e in load_world("synthetic:seed=1,entities=40").entities if e.asked_about][:5]
    plan = SeeingPlan(SupervisedPlan(updates=5, learning_rate=1e-2, warmup=1), pictures=4)

    def tower_after(stage: Stage, dies_after: int = 99) -> list[torch.Tensor]:
        model, processor = qwen2_5_vl()

        def on_update(update: int, loss: float, right: float) -> None:
            if update == dies_after:
                raise Killed

        learn_to_see(model, processor, entities, plan, place, seed=1, pictures_each=2, stage=stage, on_update=on_update)
        return [parameter.detach().clone() for parameter in model.model.visual.parameters()]

    whole = tower_after(NOT_KEPT)
    with pytest.raises(Killed):
        tower_after(Stage(tmp_path, every=2), dies_after=2)
    resumed = tower_after(Stage(tmp_path, every=2))
    assert all(torch.equal(one, other) for one, other in zip(whole, resumed, strict=True))
