"""The optimiser: its settings, and what it remembers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
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


def parameter_groups(named: Sequence[tuple[str, nn.Parameter]], rates: Mapping[str, float]) -> list[dict[str, Any]]:
    """Parameters that learn at the same rate."""
    found: dict[float, list[nn.Parameter]] = {}
    for name, parameter in named:
        rate = next((rate for beginning, rate in rates.items() if name.startswith(beginning)), 1.0)
        found.setdefault(rate, []).append(parameter)
    return [{"params": parameters, "rate": rate} for rate, parameters in found.items()]


class CheckedAdamW(torch.optim.AdamW):
    """AdamW that clips by the global norm and passes over gradients that are not finite, as ZeRO does around it.

    DeepSpeed reads ``overflow`` and ``_global_grad_norm`` after a step.
    """

    def __init__(self, groups: list[dict[str, Any]], *, max_grad_norm: float, **settings: Any) -> None:
        """Args: groups: parameters that learn at the same rate; max_grad_norm: of all gradients together."""
        super().__init__(groups, **settings)
        self._max_grad_norm = max_grad_norm
        self._global_grad_norm = 0.0
        self.overflow = False

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update, unless a gradient is not finite."""
        trained = [one for group in self.param_groups for one in group["params"] if one.grad is not None]
        norm = float(nn.utils.get_total_norm([one.grad for one in trained]))
        self.overflow = not math.isfinite(norm)
        self._global_grad_norm = math.inf if self.overflow else norm
        if not self.overflow:
            for one in trained:
                one.grad.mul_(min(1.0, self._max_grad_norm / (norm + 1e-6)))
            return super().step(closure)
        return None
