"""Losses per token. Pure arithmetic on tensors; nothing writes into its arguments.

Letters: B trajectories, T tokens. Every tensor is (B, T) unless said otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

_LOG_RATIO_LIMIT = 20.0
"""Log-ratios are limited to ±20 before exp, so that one absurd token cannot overflow float32."""


@dataclass(frozen=True, slots=True)
class Surrogate:
    """The clipped surrogate per token.

    Attributes:
        losses: loss of each token.
        clipped: bool; sampled tokens whose ratio was clipped.
    """

    losses: Tensor
    clipped: Tensor


def clipped_surrogate(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, *, clip_low: float, clip_high: float
) -> Surrogate:
    """The clipped policy-gradient loss of each token, to be minimised.

    For token t with ratio rₜ = exp(logπ(t) - logπ_old(t)) and advantage Âₜ:

        Lₜ = -min(rₜ Âₜ, clip(rₜ, 1 - ε_low, 1 + ε_high) Âₜ)

    PPO, Schulman et al. 2017 (arXiv 1707.06347), eq. 7; separate bounds: DAPO, Yu et al. 2025 (arXiv 2503.14476),
    eq. 10.

    Args:
        logprobs: under the policy being trained.
        old_logprobs: under the policy that sampled.
        advantages: credit of each token.
        mask: bool, the sampled tokens.
        clip_low: ε_low, in [0, 1].
        clip_high: ε_high, at least 0.
    """
    _same_shape(logprobs, old_logprobs, advantages, mask)
    ratio = torch.exp((logprobs - old_logprobs).clamp(-_LOG_RATIO_LIMIT, _LOG_RATIO_LIMIT))
    return _clipped(ratio, advantages, mask, clip_low=clip_low, clip_high=clip_high)


def sequence_surrogate(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, *, clip_low: float, clip_high: float
) -> Surrogate:
    """The clipped surrogate with one ratio for a whole trajectory.

    With n sampled tokens in trajectory i:

        sᵢ = exp( 1/n Σₜ (logπ(t) - logπ_old(t)) )
        Lₜ = -min(sᵢ,ₜ Âₜ, clip(sᵢ,ₜ, 1 - ε_low, 1 + ε_high) Âₜ),   sᵢ,ₜ = sg[sᵢ] π(t) / sg[π(t)]

    sg stops the gradient, so that each token carries its own advantage. GSPO, Zheng et al. 2025 (arXiv 2507.18071),
    eq. 7 and 13-14; averaged within trajectories first, its gradient for one advantage per trajectory is that of eq. 5.

    Args:
        logprobs: under the policy being trained.
        old_logprobs: under the policy that sampled.
        advantages: credit of each token.
        mask: bool, the sampled tokens.
        clip_low: ε_low, in [0, 1].
        clip_high: ε_high, at least 0.
    """
    _same_shape(logprobs, old_logprobs, advantages, mask)
    apart = torch.where(mask, logprobs - old_logprobs, 0.0).detach()
    mean = apart.sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True).clamp(min=1)
    ratio = torch.exp((mean + logprobs - logprobs.detach()).clamp(-_LOG_RATIO_LIMIT, _LOG_RATIO_LIMIT))
    return _clipped(ratio, advantages, mask, clip_low=clip_low, clip_high=clip_high)


def weighted_surrogate(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, *, clip_low: float, clip_high: float
) -> Surrogate:
    """The log-probability of each token, weighted by its clipped ratio; no token is without gradient.

        Lₜ = -sg[ clip(rₜ, 1 - ε_low, 1 + ε_high) ] Âₜ logπ(t)

    CISPO, MiniMax 2025 (arXiv 2506.13585), eq. 4-5; ε_low = 1 leaves the ratio free below.

    Args:
        logprobs: under the policy being trained.
        old_logprobs: under the policy that sampled.
        advantages: credit of each token.
        mask: bool, the sampled tokens.
        clip_low: ε_low, in [0, 1].
        clip_high: ε_high, at least 0.
    """
    _same_shape(logprobs, old_logprobs, advantages, mask)
    ratio = torch.exp((logprobs.detach() - old_logprobs).clamp(-_LOG_RATIO_LIMIT, _LOG_RATIO_LIMIT))
    bounded = ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    return Surrogate(losses=-bounded * advantages * logprobs, clipped=(bounded != ratio) & mask)


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, *, clip: float) -> Tensor:
    """The critic's loss at each token.

        Lₜ = ½ max( (Vₜ - Rₜ)², (clip(Vₜ, V_oldₜ - c, V_oldₜ + c) - Rₜ)² )

    PPO's reference implementation; Huang et al. 2022, "The 37 implementation details of PPO", detail 9.

    Args:
        values: V, by the critic being trained.
        old_values: V_old, by the critic before the iteration's updates.
        returns: R, what the values should have been.
        clip: c; values further than this from the old ones learn nothing more.
    """
    _same_shape(values, old_values, returns)
    near = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns).square(), (near - returns).square())


Level = Literal["token", "sequence"]
"""What an importance weight belongs to: each token, or all sampled tokens of a trajectory together."""


def importance_weights(logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor, *, level: Level, cap: float) -> Tensor:
    """How much likelier the trainer's policy says a token than the sampler that said it, cut at C; without gradient.

        token:     wₜ = min(π(t) / μ(t), C)
        sequence:  wₜ = min(Πₛ π(s) / μ(s), C), over the sampled tokens s of t's trajectory

    Truncated importance sampling, Ionides 2008; between two engines, Yao et al. 2025, "Your efficient RL framework
    secretly brings you off-policy RL training". Elsewhere than at sampled tokens it is 0.

    Args:
        logprobs: log π, by the trainer, before any update.
        sampler_logprobs: log μ.
        mask: bool, the sampled tokens.
        level: see above.
        cap: C.
    """
    _same_shape(logprobs, sampler_logprobs, mask)
    apart = torch.where(mask, logprobs.detach() - sampler_logprobs, 0.0)
    if level == "sequence":
        apart = apart.sum(dim=1, keepdim=True).expand_as(apart)
    weights = torch.exp(apart.clamp(-_LOG_RATIO_LIMIT, _LOG_RATIO_LIMIT)).clamp(max=cap)
    return torch.where(mask, weights, 0.0)


def kl_k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """An unbiased, never negative estimate of KL(π ‖ π_ref) at each sampled token.

        kₜ = exp(dₜ) - dₜ - 1,   dₜ = logπ_ref(t) - logπ(t)

    Schulman 2020, "Approximating KL divergence", estimator k3; GRPO (arXiv 2402.03300), eq. 4.
    """
    _same_shape(logprobs, ref_logprobs)
    difference = (ref_logprobs - logprobs).clamp(-_LOG_RATIO_LIMIT, _LOG_RATIO_LIMIT)
    return torch.exp(difference) - difference - 1.0


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum over the tokens where ``mask`` is True; what stands elsewhere, NaN included, has no part in it. Scalar."""
    _same_shape(values, mask)
    return torch.where(mask, values, torch.zeros((), dtype=values.dtype, device=values.device)).sum()


def _clipped(ratio: Tensor, advantages: Tensor, mask: Tensor, *, clip_low: float, clip_high: float) -> Surrogate:
    free = ratio * advantages
    bounded = ratio.clamp(1.0 - clip_low, 1.0 + clip_high) * advantages
    return Surrogate(losses=-torch.minimum(free, bounded), clipped=(bounded < free) & mask)


def _same_shape(*tensors: Tensor) -> None:
    shapes = {tuple(tensor.shape) for tensor in tensors}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:
        raise ValueError(f"expected tensors of one shape (B, T), got {[tuple(tensor.shape) for tensor in tensors]}")
