"""Supervised training on recorded trajectories: a warm start, or a baseline to compare with.

The loss is the weighted mean of the negative log-probabilities of a trajectory's tokens,

    L = - sum_t w_t log p(token_t | tokens before t) / sum_t w_t,

with w_t = 1 where the player spoke and w_t = ``observed_weight`` where it read. To warm up a pretrained model nothing
is learnt from what was read (weight 0); a model made from scratch also learns to read by predicting it. Inputs, scorer
and engine are those of reinforcement learning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.lmm import LMMPolicy
from agents.trajectory import Trajectory
from training.batch import Example, TokenCredit, micro_batches, packed_micro_batches
from training.engine import AdamSettings, Engine, Place
from training.stages import NOT_KEPT, Stage

DrawTrajectories = Callable[[int], Sequence[Trajectory]]
"""Update number -> the trajectories this rank learns from in it."""


@dataclass(frozen=True, slots=True)
class SupervisedPlan:
    """How long and how fast.

    Attributes:
        updates: optimiser steps.
        learning_rate: at its highest.
        warmup: updates over which it rises from 0.
        decay_share: share of the updates, at the end, over which it falls to a tenth by a cosine.
        token_budget: tokens in one forward pass at most.
        observed_weight: weight of the loss on text the player read, in [0, 1]; control tokens are never learnt.
    """

    updates: int
    learning_rate: float
    warmup: int = 100
    decay_share: float = 0.4
    token_budget: int = 16_384
    observed_weight: float = 0.0

    def rate(self, update: int) -> float:
        """Learning rate of update number ``update``, counted from 0."""
        rise = min(1.0, (update + 1) / max(1, self.warmup))
        left = (self.updates - update) / max(1.0, self.decay_share * self.updates)
        fall = 1.0 if left >= 1 else 0.1 + 0.9 * 0.5 * (1 - math.cos(math.pi * left))
        return self.learning_rate * rise * fall


def fit(
    policy: LMMPolicy,
    place: Place,
    draw: DrawTrajectories,
    plan: SupervisedPlan,
    *,
    adam: AdamSettings,
    zero_stage: int = 1,
    stage: Stage = NOT_KEPT,
    on_update: Callable[[int, float], Any] = lambda update, loss: None,
) -> int:
    """Train the policy's trainable parameters; returns the updates made, none where the stage was at its end.

    Args:
        policy: who learns.
        place: where this process stands.
        plan: how long and how fast.
        adam: the optimiser's settings.
        zero_stage: at most 2; see :class:`~training.engine.Engine`.
        stage: where it is kept, so that a killed run goes on.
        draw: called once per update on every rank; ranks draw different trajectories.
        on_update: told the update's number and its mean loss in nats per token.
    """
    done = stage.weights_into(policy.scorer)
    if done >= plan.updates:
        return 0
    with closing(Engine(policy.scorer, place=place, adam=adam, zero_stage=zero_stage)) as engine:
        stage.optimiser_into(engine)
        for update in range(done, plan.updates):
            loss = _update(engine, policy, draw(update), plan, plan.rate(update))
            stage.keep(policy.scorer, engine, done=update + 1, of=plan.updates)
            on_update(update, loss)
    return plan.updates - done


def _update(
    engine: Engine, policy: LMMPolicy, trajectories: Sequence[Trajectory], plan: SupervisedPlan, rate: float
) -> float:
    """One optimiser step; returns the mean loss over all ranks."""
    examples = [Example(t, token_weights(t, policy, plan.observed_weight)) for t in trajectories]
    cut_up = packed_micro_batches if policy.packs(trajectories) else micro_batches
    batches = cut_up(examples, token_budget=plan.token_budget)
    local = {"weight": float(sum(example.advantages.sum() for example in examples))}
    total = engine.total(local)["weight"]
    most = int(engine.largest({"batches": float(len(batches))})["batches"])
    lost = 0.0
    for number in range(most):
        loss = _loss(engine, policy, batches[min(number, len(batches) - 1)]) / total
        # A rank with fewer batches repeats its last one with no weight: every rank must make as many calls.
        share = 1.0 if number < len(batches) else 0.0
        engine.backward(share * loss)
        lost += share * float(loss.detach())
    engine.step(rate)
    return engine.total({"loss": lost})["loss"]


def _loss(engine: Engine, policy: LMMPolicy, examples: Sequence[Example]) -> Tensor:
    """Weighted sum of negative log-probabilities; an example's advantages are its weights."""
    inputs = policy.forward_inputs([example.trajectory for example in examples])
    weights = torch.zeros(len(examples), max(example.length for example in examples))
    for row, example in enumerate(examples):
        weights[row, : example.length] = torch.from_numpy(example.advantages)
    weights = weights.to(engine.place.device)
    scores = engine.forward(inputs, weights > 0)
    loss: Tensor = -(scores.logprobs * weights).sum()
    return loss


def token_weights(trajectory: Trajectory, policy: LMMPolicy, observed_weight: float) -> TokenCredit:
    """(T,) weight of the loss on each token; the first token is never predicted."""
    said = np.asarray(trajectory.loss_mask)
    weights = np.where(said, 1.0, observed_weight).astype(np.float32)
    never = policy.renderer.control_ids - policy.renderer.end_ids
    weights[[token in never for token in trajectory.token_ids]] = 0.0
    weights[0] = 0.0
    return weights
