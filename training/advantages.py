"""From returns to advantages. Pure arithmetic on NumPy arrays.

Letters: G group size, T sampled tokens of an episode in order.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Scale = Literal["std", "none"]
Vector = NDArray[np.float64]

_EPSILON = 1e-6
_SPREAD_FLOOR = 1e-9
"""Returns this close together differ by rounding only."""


def has_signal(returns: ArrayLike) -> bool:
    """Whether the returns of a group differ, so that comparing them teaches something."""
    values = _vector(returns)
    return bool(values.max() - values.min() > _SPREAD_FLOOR)


def group_relative(returns: ArrayLike, *, scale: Scale = "std") -> Vector:
    """How much better each episode of a group did than the group.

    For i = 1..G, with mean R̄ and sample standard deviation s (divisor G - 1):

        Âᵢ = (Rᵢ - R̄) / (s + 1e-6)     scale "std",  GRPO, Shao et al. 2024 (arXiv 2402.03300), eq. 3 and section 4.1.2
        Âᵢ = Rᵢ - R̄                     scale "none", Dr. GRPO, Liu et al. 2025 (arXiv 2503.20783), section 3.2

    A group without signal gets zeros exactly.

    Args:
        returns: (G,) one return per episode, G >= 2.
        scale: what differences from the mean are divided by.

    Returns:
        (G,) advantages.
    """
    values = _group(returns)
    if not has_signal(values):
        return np.zeros_like(values)
    advantages: Vector = (values - values.mean()) / group_scale(values, scale)
    return advantages


def group_scale(returns: ArrayLike, scale: Scale) -> float:
    """What :func:`group_relative` divides by."""
    return 1.0 if scale == "none" else float(_group(returns).std(ddof=1)) + _EPSILON


def leave_one_out(returns: ArrayLike) -> Vector:
    """How much better each episode of a group did than the others.

        Âᵢ = Rᵢ - 1/(G - 1) Σ_{j ≠ i} Rⱼ

    RLOO, Ahmadian et al. 2024 (arXiv 2402.14740), section 3.2; equal to G/(G - 1) (Rᵢ - R̄). A group without signal gets
    zeros exactly.

    Args:
        returns: (G,) one return per episode, G >= 2.

    Returns:
        (G,) advantages.
    """
    values = _group(returns)
    return group_relative(values, scale="none") * (values.size / (values.size - 1))


def whitened(values: ArrayLike, *, mean: float, std: float) -> Vector:
    """Values with the mean and the standard deviation of a whole batch taken out: (x - mean) / (std + 1e-6)."""
    return (np.asarray(values, dtype=np.float64) - mean) / (std + _EPSILON)


def generalised_advantages(
    rewards: ArrayLike, values: ArrayLike, *, last_value: float, discounts: ArrayLike, decays: ArrayLike
) -> Vector:
    """Generalised advantage estimates over the tokens that were sampled.

    For t = T-1..0, with V_T the last value and Â_T = 0:

        δₜ = rₜ + γₜ Vₜ₊₁ - Vₜ
        Âₜ = δₜ + γₜ λₜ Âₜ₊₁

    Schulman et al. 2015 (arXiv 1506.02438), eq. 11 and 16. γ and λ may differ from token to token: within a completion
    a step is a token, from its last token to the next completion's first it is a step of the environment.

    Args:
        rewards: (T,) r; what came after each token before the next one.
        values: (T,) V; of the state in which each token was sampled.
        last_value: V_T of the state after the last token: 0 where the episode terminated, the critic's if it was cut.
        discounts: (T,) γ.
        decays: (T,) λ.

    Returns:
        (T,) advantages; added to ``values`` they are the returns that a critic learns.
    """
    steps = [np.asarray(one, dtype=np.float64) for one in (rewards, values, discounts, decays)]
    if len({one.shape for one in steps}) != 1 or steps[0].ndim != 1:
        raise ValueError(f"expected vectors of one length, got shapes {[one.shape for one in steps]}")
    reward, value, discount, decay = steps
    advantages = np.zeros_like(value)
    following, advantage = last_value, 0.0
    for step in reversed(range(len(value))):
        surprise = reward[step] + discount[step] * following - value[step]
        advantage = surprise + discount[step] * decay[step] * advantage
        advantages[step] = advantage
        following = value[step]
    return advantages


def _group(returns: ArrayLike) -> Vector:
    values = _vector(returns)
    if values.size < 2:
        raise ValueError(f"expected the returns of at least two episodes, got {values.size}; raise the group size")
    return values


def _vector(returns: ArrayLike) -> Vector:
    values = np.asarray(returns, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"expected a vector of returns, got shape {values.shape}")
    return values
