"""The optimiser: its settings, and what it remembers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True)
class AdamSettings:
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101) and the gradient clip before it.

    Attributes:
        beta1: decay of the mean of gradients.
        beta2: decay of the mean of squared gradients.
        epsilon: added to the denominator.
        weight_decay: decoupled weight decay.
        max_grad_norm: gradients are scaled down to this global 2-norm.
        rates: beginning of a parameter's name -> what the learning rate is multiplied by for it.
    """

    beta1: float = 0.9
    beta2: float = 0.99
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    rates: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class OptimiserState:
    """What AdamW remembers, whole and per parameter, whatever the number of ranks it was spread over.

    Attributes:
        steps: updates applied.
        tensors: ``"exp_avg/<parameter>"`` and ``"exp_avg_sq/<parameter>"``; empty before the first update.
    """

    steps: int
    tensors: Mapping[str, Tensor]


def parameter_groups(named: list[tuple[str, nn.Parameter]], rates: Mapping[str, float]) -> list[dict[str, Any]]:
    """Parameters that learn at the same rate."""
    found: dict[float, list[nn.Parameter]] = {}
    for name, parameter in named:
        rate = next((rate for beginning, rate in rates.items() if name.startswith(beginning)), 1.0)
        found.setdefault(rate, []).append(parameter)
    return [{"params": parameters, "rate": rate} for rate, parameters in found.items()]
