"""What a run is told, field by field.

A recipe is a YAML file with these sections (:mod:`training.config.file` reads it). The configuration stops at the
composition root, :mod:`training.compose`: everything below it takes plain arguments.
"""

from __future__ import annotations

from training.config.about import About
from training.config.acting import EnvConfig, PolicyConfig, RolloutConfig
from training.config.learning import AlgorithmConfig, CriticConfig, EngineConfig, OptimiserConfig
from training.config.sections import EvaluationConfig, OutputConfig, RunConfig

__all__ = [
    "About",
    "AlgorithmConfig",
    "CriticConfig",
    "EngineConfig",
    "EnvConfig",
    "EvaluationConfig",
    "OptimiserConfig",
    "OutputConfig",
    "PolicyConfig",
    "RolloutConfig",
    "RunConfig",
]
