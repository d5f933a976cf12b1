"""Updates of random LMMs of every family in processes of their own: ``lmm_update.py FOLDER STAGE``.

Each rank learns from its share of the same episodes: with pictures in the prompt and in later turns, of unequal length.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "agents"))

import torch
from families import FAMILIES, adapted_policy
from test_packing import group

from agents.critic import CriticSettings
from agents.engines.contract import SamplingLimits
from agents.trajectory import Group, Trajectory
from training.algorithms.presets import ppo
from training.balance import balanced
from training.engine import AdamSettings, Engine, Place, join, leave
from training.learn import Learner, TokenBudget
from training.learning_record import LearningRecord

_SIZES = (4, 2, 3, 2, 4, 2, 2)


def main(folder: Path, zero_stage: int) -> None:
    torch.set_num_threads(1)
    place = join(timeout_s=120.0)
    for family in sorted(FAMILIES):
        updated(family, place, folder, zero_stage)
    leave()


def updated(family: str, place: Place, folder: Path, zero_stage: int) -> None:
    """Two updates; rank 0 writes the adapter and what was measured."""
    policy = adapted_policy(family, limits=SamplingLimits(max_new_tokens=8), critic=CriticSettings())
    groups = {
        number: Group(str(number), tuple(map(rewarded, group(policy, number, size), range(size))))
        for number, size in enumerate(_SIZES)
    }
    # With the usual epsilon, a parameter whose gradient is all but 0 moves by the last digits of that.
    engine = Engine(policy.scorer, place=place, zero_stage=zero_stage, adam=AdamSettings(epsilon=1e-3))
    learner = Learner(policy, engine, ppo(kl_coefficient=0.1), 1.0, TokenBudget(600))
    mine = {number: one for number, one in groups.items() if number % place.world_size == place.rank}
    shared_out = balanced(learner.credit(mine), engine)
    examples = [example for found in shared_out.values() for example in found]
    record, prepared = LearningRecord.of(learner.algorithm), learner.prepare(examples, updates=2)
    norms = [learner.update(prepared, record, learning_rate=0.01, measure_gap=number == 0) for number in range(2)]
    assert place.world_size == 1 or sorted(shared_out) != sorted(mine)  # ranks had unequal shares, and have no more
    measured = {**learner.metrics(record), "norm/0": norms[0], "norm/1": norms[1]}
    with engine.gathered("trained"):
        if place.rank == 0:
            (folder / family).mkdir(parents=True)
            policy.save_adapter(folder / family)
            (folder / family / "measured.json").write_text(json.dumps(measured))
    engine.wait_for_all()
    engine.close()


def rewarded(played: Trajectory, number: int) -> Trajectory:
    """With a price for the first turn and a reward in some of the episodes."""
    rewards = (-0.1, float(number % 2))
    return replace(played, turns=tuple(replace(t, reward=r) for t, r in zip(played.turns, rewards, strict=True)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
