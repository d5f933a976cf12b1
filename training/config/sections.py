"""A whole recipe, and its sections about judging and keeping."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from training.config.about import About
from training.config.acting import EnvConfig, PolicyConfig, RolloutConfig
from training.config.learning import AlgorithmConfig, CriticConfig, EngineConfig, OptimiserConfig


@dataclass(frozen=True, slots=True)
class EvaluationConfig:
    """How progress is judged: one episode of each of some questions that are not trained on."""

    split: Annotated[str, About("Questions of the table before and after training: a split of the world.")] = "test"
    file: Annotated[str, About('Question file for all evaluations instead of the splits; "" for none.')] = ""
    questions: Annotated[int, About("At most this many of them, spread evenly.", "questions", low=1)] = 200
    during_split: Annotated[str, About("Questions of the evaluations during training.")] = "validation"
    during_questions: Annotated[int, About("At most this many of them.", "questions", low=1)] = 64
    temperature: Annotated[
        float, About("Softmax temperature of these episodes; 0 takes the likeliest token.", low=0)
    ] = 0.0
    every: Annotated[int, About("Evaluate during training every n iterations; 0 never.", "iterations", low=0)] = 0


@dataclass(frozen=True, slots=True)
class OutputConfig:
    """What is written, and where."""

    folder: Annotated[str, About("Folder of the run.")] = "runs/run"
    tracker: Annotated[
        Literal["none", "wandb", "mlflow", "trackio"],
        About("Experiment tracker that gets every number as well, beside TensorBoard."),
    ] = "none"
    project: Annotated[str, About("Where the tracker files the run.")] = "mmsearch"
    save_every: Annotated[int, About("Write a checkpoint every n iterations, and at the end.", "iterations", low=1)] = (
        10
    )
    keep: Annotated[int, About("Checkpoints kept; older ones are deleted.", "checkpoints", low=1)] = 2
    transcripts_every: Annotated[
        int, About("Write one group's transcripts every n iterations; 0 never.", "iterations", low=0)
    ] = 10


@dataclass(frozen=True, slots=True)
class RunConfig:
    """One training run."""

    policy: PolicyConfig = PolicyConfig()
    env: EnvConfig = EnvConfig()
    rollout: RolloutConfig = RolloutConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    critic: CriticConfig = CriticConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    engine: EngineConfig = EngineConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    output: OutputConfig = OutputConfig()
    iterations: Annotated[int, About("How often the run acts and learns.", "iterations", low=1)] = 100
    seed: Annotated[int, About("Every random number of the run follows from it.", low=0)] = 0

    @property
    def updates_per_epoch(self) -> int:
        """Optimiser steps of one pass over an iteration's episodes."""
        per_update = self.algorithm.questions_per_update or self.rollout.questions_per_iteration
        return -(-self.rollout.questions_per_iteration // per_update)

    @property
    def optimiser_steps(self) -> int:
        """Optimiser steps of the whole run (fewer when updates are skipped)."""
        return self.iterations * self.algorithm.epochs * self.updates_per_epoch
