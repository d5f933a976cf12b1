"""From returns to advantages. Pure arithmetic on NumPy arrays.

Letters: G group size.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Scale = Literal["std", "none"]

_EPSILON = 1e-6
_SPREAD_FLOOR = 1e-9
"""Returns this close together differ by rounding only."""


def has_signal(returns: ArrayLike) -> bool:
    """Whether the returns of a group differ, so that comparing them teaches something."""
    values = _vector(returns)
    return bool(values.max() - values.min() > _SPREAD_FLOOR)


def group_relative(returns: ArrayLike, *, scale: Scale = "std") -> NDArray[np.float64]:
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
    values = _vector(returns)
    if values.size < 2:
        raise ValueError(f"expected the returns of at least two episodes, got {values.size}; raise the group size")
    if not has_signal(values):
        return np.zeros_like(values)
    centred = values - values.mean()
    divisor = 1.0 if scale == "none" else float(values.std(ddof=1)) + _EPSILON
    advantages: NDArray[np.float64] = centred / divisor
    return advantages


def _vector(returns: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(returns, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"expected a vector of returns, got shape {values.shape}")
    return values
