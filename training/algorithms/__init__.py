"""Algorithms: each is a credit and a loss behind the same two methods. The loop does not know which one runs."""

from training.algorithms.contract import Algorithm, LossTerms, StateValues, UpdateSize
from training.algorithms.presets import PRESETS, options_of

__all__ = ["PRESETS", "Algorithm", "LossTerms", "StateValues", "UpdateSize", "options_of"]
