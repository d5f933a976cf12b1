"""Learning-rate schedules as pure functions of the optimiser step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Shape = Literal["constant", "linear", "cosine", "sigmoid"]


@dataclass(frozen=True, slots=True)
class LearningRate:
    """Linear warm-up from 0 to the peak, then a decay.

    With step n counted from 0, warm-up w, total N, progress p = (n - w) / (N - w) and final fraction f:

        constant  1
        linear    1 - (1 - f) p
        cosine    f + (1 - f) (1 + cos πp) / 2
        sigmoid   f + (1 - f) σ((c - n) / (c / 10))   centre c; MMSearch-R1's schedule has f = 0.05, c = 45

    times the peak.

    Attributes:
        peak: the highest learning rate.
        shape: the decay.
        warmup_steps: w, in optimiser steps.
        total_steps: N, in optimiser steps.
        final_fraction: f.
        centre: c, in optimiser steps; 0 stands for N / 2.
    """

    peak: float
    shape: Shape = "constant"
    warmup_steps: int = 0
    total_steps: int = 1
    final_fraction: float = 0.0
    centre: int = 0

    def at(self, step: int) -> float:
        """The learning rate of optimiser step ``step``, counted from 0."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        return self.peak * (self.final_fraction + (1.0 - self.final_fraction) * self._decay(step))

    def _decay(self, step: int) -> float:
        progress = min(1.0, (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps))
        if self.shape == "linear":
            return 1.0 - progress
        if self.shape == "cosine":
            return (1.0 + math.cos(math.pi * progress)) / 2.0
        if self.shape == "sigmoid":
            centre = self.centre or self.total_steps / 2
            return 1.0 / (1.0 + math.exp(min(700.0, (step - centre) / (centre / 10.0))))
        return 1.0


def search_penalty_at(iteration: int, *, first: float | None, last: float, iterations: int) -> float:
    """The price of a search in an iteration, counted from 0: from ``first``, evenly, to ``last`` after ``iterations``.

    MMSearch-R1's code has such a schedule from a bonus to the full price, which its paper does not mention.
    """
    if first is None:
        return last
    return first + (last - first) * min(1.0, iteration / iterations)
