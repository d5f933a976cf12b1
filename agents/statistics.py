"""Means with 95 % intervals from a seeded bootstrap (Efron 1979).

Questions about one entity share its picture and what a model knows of it, so they are no independent samples: whole
clusters are drawn with replacement, not single questions (Davison & Hinkley 1997, section 3.8). Where several training
seeds were played, seeds are drawn too.

Letters: N questions, C clusters, S seeds, R bootstrap draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_DRAWS = 2000

Values = np.ndarray[Any, np.dtype[np.float64]]
"""One number for each question, (N,), or for each seed and question, (S, N)."""
Mask = np.ndarray[Any, np.dtype[np.bool_]]
"""(N,) which questions belong to a part."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def mean(values: Sequence[float] | Values, clusters: Sequence[str]) -> Estimate:
    """The mean over all questions; not-a-number without questions."""
    array = np.atleast_2d(np.asarray(values, dtype=np.float64))
    return contrast(array, clusters, [(1.0, np.ones(array.shape[1], dtype=np.bool_))])


def contrast(values: Values, clusters: Sequence[str], parts: Sequence[tuple[float, Mask]]) -> Estimate:
    """A weighted sum of means over parts of the questions, e.g. +1 times one part's mean and -1 times another's.

    Args:
        values: (S, N).
        clusters: (N,) what each question is about.
        parts: a weight and the questions it belongs to; a part without questions makes not-a-number. A draw of clusters
            that leaves a part empty is not counted.
    """
    if values.shape[1] == 0 or any(not mask.any() for _, mask in parts):
        return Estimate(float("nan"), float("nan"), float("nan"))
    _, member = np.unique(np.asarray(clusters), return_inverse=True)
    rng = np.random.default_rng(0)
    size = int(member.max()) + 1
    drawn = rng.multinomial(size, np.full(size, 1 / size), size=_DRAWS)  # (R, C)
    seeds = rng.multinomial(len(values), np.full(len(values), 1 / len(values)), size=_DRAWS) / len(values)  # (R, S)
    whole, draws = 0.0, np.zeros(_DRAWS)
    for weight, mask in parts:
        counts = np.bincount(member[mask], minlength=size)  # (C,)
        sums = np.stack([np.bincount(member[mask], row[mask], minlength=size) for row in values])  # (S, C)
        whole += weight * float(values[:, mask].mean())
        found = (drawn @ counts).astype(np.float64)
        found[found == 0] = np.nan
        means = (drawn @ sums.T) / found[:, None]  # (R, S)
        draws += weight * (means * seeds).sum(axis=1)
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return Estimate(whole, float(low), float(high))
