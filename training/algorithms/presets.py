"""The algorithms by name. Each is a credit and a loss; its equation stands beside what it is made of.

How all of them depart from their papers: tokens that the environment wrote have no part in any loss, and what a paper
divides by the tokens or responses of a batch is divided by those of the whole update, over all ranks and micro-batches,
so that how a batch is cut has no influence.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

from training.advantages import Scale
from training.algorithms.contract import Algorithm
from training.algorithms.credit import BatchNormalised, ByReturn, Returns
from training.algorithms.policy_gradient import Aggregation, Clipped, PolicyGradient
from training.algorithms.ppo import PPO, Horizon
from training.losses import clipped_surrogate, sequence_surrogate, weighted_surrogate


def grpo(
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    advantage_scale: Scale = "std",
    aggregation: Aggregation = "token",
    returns: Returns = "episode",
    **shared: Any,
) -> PolicyGradient:
    """Group relative policy optimisation, Shao et al. 2024 (arXiv 2402.03300), eq. 3 and 4.

        Âᵢ = (Rᵢ - R̄) / s,   token-clipped surrogate, k3 divergence

    The paper averages within episodes first (aggregation "episode"); every token weighs the same here.
    """
    return PolicyGradient(
        ByReturn("group", advantage_scale, returns),
        Clipped(clipped_surrogate, clip_low, clip_high),
        aggregation,
        **shared,
    )


def dr_grpo(
    *, clip_low: float = 0.2, clip_high: float = 0.2, returns: Returns = "episode", **shared: Any
) -> PolicyGradient:
    """GRPO done right, Liu et al. 2025 (arXiv 2503.20783), section 3.2.

        Âᵢ = Rᵢ - R̄,   token-clipped surrogate, summed and divided by a constant

    Neither easy and hard questions nor short and long episodes are weighted differently.
    """
    return grpo(
        clip_low=clip_low,
        clip_high=clip_high,
        advantage_scale="none",
        aggregation="constant",
        returns=returns,
        **shared,
    )


def dapo(
    *, clip_low: float = 0.2, clip_high: float = 0.28, returns: Returns = "episode", **shared: Any
) -> PolicyGradient:
    """Decoupled clip and dynamic sampling, Yu et al. 2025 (arXiv 2503.14476), eq. 8.

        GRPO with ε_high > ε_low, every token weighing the same, and no divergence

    Dynamic sampling is ``rollout.refills``, the over-long punishment ``algorithm.overlong_tokens``.
    """
    return grpo(clip_low=clip_low, clip_high=clip_high, returns=returns, **shared)


def gspo(
    *,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
    advantage_scale: Scale = "std",
    returns: Returns = "episode",
    **shared: Any,
) -> PolicyGradient:
    """Group sequence policy optimisation, Zheng et al. 2025 (arXiv 2507.18071), eq. 5 and section 5.1.

    Âᵢ = (Rᵢ - R̄) / s,   one ratio for each episode, every episode weighing the same
    """
    credit = ByReturn("group", advantage_scale, returns)
    return PolicyGradient(credit, Clipped(sequence_surrogate, clip_low, clip_high), "episode", **shared)


def bn_gspo(
    *,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
    advantage_scale: Scale = "std",
    returns: Returns = "episode",
    **shared: Any,
) -> PolicyGradient:
    """Batch-normalised GSPO, SenseNova-MARS 2025 (arXiv 2512.24330).

    GSPO whose advantages are normalised within the group, then over the whole batch
    """
    plain = gspo(clip_low=clip_low, clip_high=clip_high, advantage_scale=advantage_scale, returns=returns, **shared)
    return replace(plain, credit=BatchNormalised(plain.credit))


def cispo(
    *,
    clip_low: float = 1.0,
    clip_high: float = 4.0,
    advantage_scale: Scale = "std",
    returns: Returns = "episode",
    **shared: Any,
) -> PolicyGradient:
    """Clipped importance-sampling weights, MiniMax 2025 (arXiv 2506.13585), eq. 4-5.

        Âᵢ = (Rᵢ - R̄) / s,   log-probabilities weighted by clipped ratios, every token weighing the same

    The ratio is free below and cut at 5, as in ScaleRL (arXiv 2510.13786).
    """
    return PolicyGradient(
        ByReturn("group", advantage_scale, returns), Clipped(weighted_surrogate, clip_low, clip_high), "token", **shared
    )


def rloo(
    *, clip_low: float = 0.2, clip_high: float = 0.2, returns: Returns = "episode", **shared: Any
) -> PolicyGradient:
    """REINFORCE leave-one-out, Ahmadian et al. 2024 (arXiv 2402.14740), section 3.2.

        Âᵢ = Rᵢ - mean of the others,   summed over tokens and divided by a constant

    The surrogate is clipped, which changes nothing in an iteration's first update and keeps further ones near.
    """
    return PolicyGradient(
        ByReturn("others", returns=returns), Clipped(clipped_surrogate, clip_low, clip_high), "constant", **shared
    )


def reinforce_pp(
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    baseline: Literal["group", "batch"] = "group",
    returns: Returns = "episode",
    **shared: Any,
) -> PolicyGradient:
    """REINFORCE++, Hu et al. 2025 (arXiv 2501.03262), eq. 9 and section 3.3.

        Âᵢ = (Aᵢ - mean over the batch) / (std over the batch),   token-clipped surrogate

    with Aᵢ = Rᵢ - R̄ (baseline "group", "REINFORCE++ with baseline") or Aᵢ = Rᵢ (baseline "batch"). The divergence is a
    term of the loss and not of the reward.
    """
    by_group = BatchNormalised(ByReturn("group", returns=returns))
    credit = by_group if baseline == "group" else BatchNormalised(ByReturn("none", returns=returns), over="all")
    return PolicyGradient(credit, Clipped(clipped_surrogate, clip_low, clip_high), "token", **shared)


def ppo(
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    value_coefficient: float = 0.5,
    value_clip: float = 0.2,
    token_discount: float = 1.0,
    token_decay: float = 1.0,
    turn_discount: float = 1.0,
    turn_decay: float = 0.95,
    **shared: Any,
) -> PPO:
    """Proximal policy optimisation with a critic; see :class:`~training.algorithms.ppo.PPO`."""
    return PPO(
        PolicyGradient(ByReturn("none"), Clipped(clipped_surrogate, clip_low, clip_high), "token", **shared),
        Horizon(token_discount, token_decay, turn_discount, turn_decay),
        value_coefficient,
        value_clip,
    )


PRESETS: dict[str, Callable[..., Algorithm]] = {
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "dapo": dapo,
    "gspo": gspo,
    "bn_gspo": bn_gspo,
    "cispo": cispo,
    "rloo": rloo,
    "reinforce_pp": reinforce_pp,
    "ppo": ppo,
}
"""Name in a recipe -> what makes the algorithm."""


def options_of(name: str) -> dict[str, Any]:
    """The options that only some algorithms take, with this one's own values."""
    parameters = inspect.signature(PRESETS[name]).parameters.values()
    return {one.name: one.default for one in parameters if one.default is not inspect.Parameter.empty}
