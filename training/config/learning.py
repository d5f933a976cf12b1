"""Sections about learning: what is made of the rewards, and how weights move."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from training.config.about import About


@dataclass(frozen=True, slots=True)
class AlgorithmConfig:
    """What is made of the rewards."""

    name: Annotated[
        Literal["grpo", "dr_grpo", "dapo", "gspo", "bn_gspo", "cispo", "rloo", "reinforce_pp", "ppo"],
        About("The algorithm."),
    ] = "grpo"
    clip_low: Annotated[
        float | None,
        About("The probability ratio is clipped below 1 - clip_low; none for the algorithm's own.", low=0, high=1),
    ] = None
    clip_high: Annotated[
        float | None,
        About("The probability ratio is clipped above 1 + clip_high; none for the algorithm's own.", low=0),
    ] = None
    advantage_scale: Annotated[
        Literal["own", "std", "none"],
        About(
            "Divide a group's advantages by its standard deviation, or leave them as differences from its mean; or as "
            "the algorithm has it."
        ),
    ] = "own"
    aggregation: Annotated[
        Literal["own", "token", "episode", "constant"],
        About("Whether tokens weigh the same, or episodes, or a constant is divided by; or as the algorithm has it."),
    ] = "own"
    baseline: Annotated[
        Literal["own", "group", "batch"],
        About("What REINFORCE++ compares an episode with; or as the algorithm has it."),
    ] = "own"
    returns: Annotated[
        Literal["episode", "to_go"],
        About("Whether a turn is credited with all rewards of its episode, or with those from it on."),
    ] = "episode"
    kl_coefficient: Annotated[
        float,
        About("Weight of the KL divergence from the model without any adapter; 0 skips its pass.", low=0),
    ] = 0.0
    correction: Annotated[
        Literal["none", "token", "sequence"],
        About("Whether tokens are weighted by how much likelier the trainer says them than the sampler did."),
    ] = "none"
    correction_cap: Annotated[float, About("Largest such weight.", above=0)] = 2.0
    overlong_tokens: Annotated[
        int,
        About("Sampled tokens of an episode from which on its reward is 1 less (DAPO); 0 for none.", "tokens", low=0),
    ] = 0
    overlong_margin: Annotated[int, About("Tokens over which this punishment grows.", "tokens", low=1)] = 64
    fatal_failures: Annotated[
        int,
        About(
            "Failed searches in a row after which an episode's later turns are not learnt from, nor anything in it "
            "held against the policy; 0 for none.",
            "searches",
            low=0,
        ),
    ] = 0
    drop_groups_without_signal: Annotated[bool, About("Leave out groups whose episodes all got the same return.")] = (
        True
    )
    epochs: Annotated[int, About("Passes over the episodes of one iteration.", "epochs", low=1)] = 1
    questions_per_update: Annotated[
        int, About("Questions behind one optimiser step; 0 takes all of the iteration.", "questions", low=0)
    ] = 0


@dataclass(frozen=True, slots=True)
class CriticConfig:
    """How states are valued, for ``algorithm.name: ppo``."""

    trunk: Annotated[
        Literal["shared", "detached"],
        About("Whether the critic's gradient trains the adapter too, or only the critic's own head."),
    ] = "shared"
    learning_rate_factor: Annotated[
        float, About("The head's learning rate, as a multiple of the adapter's.", above=0)
    ] = 1.0
    value_coefficient: Annotated[float, About("Weight of the critic's loss.", above=0)] = 0.5
    value_clip: Annotated[
        float, About("Values that moved further than this since the rollout learn nothing more.", above=0)
    ] = 0.2
    token_discount: Annotated[float, About("Discount from a token to the next one of a turn.", low=0, high=1)] = 1.0
    token_decay: Annotated[float, About("GAE's lambda within a turn.", low=0, high=1)] = 1.0
    turn_discount: Annotated[float, About("Discount from a turn to the next one.", low=0, high=1)] = 1.0
    turn_decay: Annotated[float, About("GAE's lambda from a turn to the next one.", low=0, high=1)] = 0.95


@dataclass(frozen=True, slots=True)
class OptimiserConfig:
    """How weights move (AdamW)."""

    learning_rate: Annotated[float, About("Peak learning rate.", above=0)] = 1e-5
    schedule: Annotated[
        Literal["constant", "linear", "cosine", "sigmoid"], About("Shape of the decay after the warm-up.")
    ] = "constant"
    warmup_steps: Annotated[int, About("Linear warm-up from 0.", "optimiser steps", low=0)] = 0
    final_fraction: Annotated[
        float, About("Where the decay ends, as a fraction of the peak.", "fraction of the peak", low=0, high=1)
    ] = 0.0
    decay_centre: Annotated[
        int, About("Step at which a sigmoid decay is half done; 0 means half of the run.", "optimiser steps", low=0)
    ] = 0
    weight_decay: Annotated[float, About("Decoupled weight decay.", low=0)] = 0.0
    beta1: Annotated[float, About("Decay of the mean of gradients.", low=0, high=0.99999)] = 0.9
    beta2: Annotated[float, About("Decay of the mean of squared gradients.", low=0, high=0.999999)] = 0.99
    epsilon: Annotated[float, About("Added to the denominator of Adam.", above=0)] = 1e-8
    max_grad_norm: Annotated[float, About("Gradients are scaled down to this global 2-norm.", above=0)] = 1.0


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How the work is spread."""

    zero_stage: Annotated[
        int,
        About(
            "DeepSpeed ZeRO stage: 0 holds all on every rank, 1 shards the optimiser's state, 2 the gradients too, 3 "
            "the parameters too.",
            low=0,
            high=3,
        ),
    ] = 1
    offload: Annotated[
        Literal["none", "cpu"],
        About("Where parameters and optimiser state lie while they are not used, at stage 3."),
    ] = "none"
    micro_batch_tokens: Annotated[
        int,
        About(
            "Tokens in one forward pass, a group's common prompt counted once; an episode longer than this goes alone.",
            "tokens",
            low=1,
        ),
    ] = 8192
    gradient_checkpointing: Annotated[
        bool, About("Make activations anew for the gradient in place of keeping them: less memory, more time.")
    ] = False
    timeout_s: Annotated[
        float, About("How long a rank waits for the others before the run fails.", "seconds", low=1)
    ] = 1800.0
