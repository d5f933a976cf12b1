"""The composition root: from a configuration to the real policy, environment and task.

Nothing below this file knows the configuration's sections of the policy and the environment, and nothing above it
knows their classes.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import torch

from agents.critic import CriticSettings
from agents.engines.contract import SamplingLimits
from agents.engines.vllm import HIGHEST_TEMPERATURE, INSTALLED_BY, LOWEST_TEMPERATURE, RANKS, VLLMSettings
from agents.labels import UNSOLVED, load_labels
from agents.lmm import LMMPolicy
from agents.lora import LoRASettings
from agents.playing import model_folder
from agents.rollout import RolloutLimits
from mmsearch_env.env import MMSearchEnv
from mmsearch_env.errors import ConfigError, DataError
from mmsearch_env.questions import Question, QuestionSet
from mmsearch_env.resources import resolve_questions
from training.algorithms import PRESETS, Algorithm, options_of
from training.algorithms.credit import FatalFailures, Overlong
from training.algorithms.policy_gradient import Correction
from training.config import AlgorithmConfig, CriticConfig, EnvConfig, RunConfig
from training.engine import AdamSettings, Place
from training.run import Parts
from training.search_task import SearchTask

_ENV_SOURCES = ("split", "questions")
_INSTALLED_BY = {"flash_attn": "pip install flash-attn", "vllm": INSTALLED_BY}


def build_policy(config: RunConfig, *, device: torch.device) -> LMMPolicy:
    """The model with its adapter, ready to sample and to be trained.

    Raises:
        ConfigError: a temperature that the engine cannot sample at.
        PolicyError: no such model or adapter, or an engine that does not start.
    """
    settings = config.policy
    policy = LMMPolicy.load(
        model_path(config),
        lora=LoRASettings(rank=settings.lora_rank, alpha=settings.lora_alpha),
        dtype=settings.dtype,
        device=str(device),
        seed=config.seed,
        limits=SamplingLimits(max_new_tokens=config.rollout.max_new_tokens, temperature=config.rollout.temperature),
        max_context_tokens=config.rollout.max_context_tokens,
        system=settings.system,
        attention=settings.attention,
        critic=CriticSettings(config.critic.trunk) if config.algorithm.name == "ppo" else None,
        engine=sampling_engine(config),
    )
    if settings.adapter:
        policy.load_adapter(Path(settings.adapter))
    if config.engine.gradient_checkpointing:
        policy.checkpoint_activations()
    return policy


def model_path(config: RunConfig) -> str:
    """The folder of the model, or its hub id."""
    folder = model_folder(config.policy.model)
    return str(folder) if folder.is_dir() else config.policy.model


def sampling_engine(config: RunConfig) -> VLLMSettings | None:
    """What vLLM needs to know; None where transformers samples.

    Raises:
        ConfigError: a temperature or a rank that vLLM does not take.
    """
    if config.rollout.engine != "vllm":
        return None
    temperatures = {"rollout": config.rollout.temperature, "evaluation": config.evaluation.temperature}
    for section, temperature in temperatures.items():
        if temperature and not LOWEST_TEMPERATURE <= temperature <= HIGHEST_TEMPERATURE:
            raise ConfigError(
                f"{section}.temperature: expected a number from {LOWEST_TEMPERATURE:g} to {HIGHEST_TEMPERATURE:g} with "
                f"rollout.engine 'vllm', got {temperature:g}"
            )
    if config.policy.lora_rank > RANKS[-1]:
        raise ConfigError(
            f"policy.lora_rank: expected at most {RANKS[-1]} with rollout.engine 'vllm', got {config.policy.lora_rank}"
        )
    return VLLMSettings(
        model=model_path(config), memory=config.rollout.engine_memory, rows=config.rollout.live_episodes
    )


def build_algorithm(config: RunConfig) -> Algorithm:
    """The algorithm a recipe names.

    Raises:
        ConfigError: an option that has no effect under it.
    """
    settings = config.algorithm
    return PRESETS[settings.name](
        **_chosen(settings),
        **(_chosen_of_critic(config.critic) if settings.name == "ppo" else {}),
        **({"episode_tokens": _most_sampled(config)}),
        kl_coefficient=settings.kl_coefficient,
        correction=None if settings.correction == "none" else Correction(settings.correction, settings.correction_cap),
        overlong=Overlong(settings.overlong_tokens, settings.overlong_margin),
        fatal=FatalFailures(settings.fatal_failures),
    )


def _chosen(settings: AlgorithmConfig) -> dict[str, Any]:
    """The options that a recipe sets and only some algorithms have. Raises ConfigError."""
    own = options_of(settings.name)
    chosen: dict[str, Any] = {}
    for name in ("clip_low", "clip_high", "advantage_scale", "aggregation", "baseline", "returns"):
        value, default = getattr(settings, name), getattr(AlgorithmConfig(), name)
        if value == default:
            continue
        if name not in own:
            raise ConfigError(
                f"algorithm.{name}: expected {default!r} with algorithm {settings.name!r}, got {value!r}; it has no "
                "effect there"
            )
        chosen[name] = value
    return chosen


def _chosen_of_critic(settings: CriticConfig) -> dict[str, Any]:
    known = options_of("ppo")
    return {name: value for name, value in dataclasses.asdict(settings).items() if name in known}


def _most_sampled(config: RunConfig) -> float:
    """Tokens that may be sampled in an episode."""
    return float(config.env.max_rounds * config.rollout.max_new_tokens)


def adam_settings(config: RunConfig) -> AdamSettings:
    """The optimiser a recipe describes."""
    optimiser = config.optimiser
    return AdamSettings(
        beta1=optimiser.beta1,
        beta2=optimiser.beta2,
        epsilon=optimiser.epsilon,
        weight_decay=optimiser.weight_decay,
        max_grad_norm=optimiser.max_grad_norm,
        rates={"critic.": config.critic.learning_rate_factor} if config.algorithm.name == "ppo" else {},
    )


def training_questions(config: RunConfig) -> QuestionSet:
    """The questions trained on. Raises ConfigError or DataError."""
    found = _labelled(config, config.env.questions, config.env.split)
    if config.rollout.skip_unsolved:
        found = found.where(lambda question: question.category != UNSOLVED)
    categories = sorted({question.category for question in found})
    for name in config.rollout.repeats:
        if name not in categories:
            raise ConfigError(
                f"rollout.repeats: expected categories of the questions ({', '.join(categories)}), got {name!r}"
            )
    return found


def evaluation_questions(config: RunConfig) -> list[Question]:
    """The questions of the table before and after training. Raises ConfigError or DataError."""
    found = _labelled(config, config.evaluation.file, config.evaluation.split)
    return list(found.spread(config.evaluation.questions))


def questions_during(config: RunConfig) -> list[Question]:
    """The questions of the evaluations during training. Raises ConfigError or DataError."""
    found = _labelled(config, config.evaluation.file, config.evaluation.during_split)
    return list(found.spread(config.evaluation.during_questions))


def _labelled(config: RunConfig, file: str, split: str) -> QuestionSet:
    """A question file or a split of the world, with the labels measured for the model where it has some.

    Raises:
        DataError: only some of the questions have a label; labelling was interrupted.
    """
    labels, asked = (
        load_labels(model_folder(config.policy.model)),
        resolve_questions(file or None, config.env.world, split),
    )
    if 0 < (known := sum(question.id in labels.by_id for question in asked)) < len(asked):
        raise DataError(
            f"{asked.name}: expected a label for each of {len(asked)} questions or for none, got {known}; "
            f"`python -m agents label --model {config.policy.model}` goes on with the rest"
        )
    return labels.on(asked)


def env_keywords(config: EnvConfig) -> dict[str, Any]:
    """The keywords of ``MMSearchEnv`` a recipe describes, its questions left out."""
    values = {item.name: getattr(config, item.name) for item in dataclasses.fields(config)}
    kept = {name: value for name, value in values.items() if name not in _ENV_SOURCES}
    return {**kept, "tools": dict(config.tools) or None, "judge": dict(config.judge) or None}


def build_parts(config: RunConfig, place: Place) -> Parts:
    """Everything a run is made of.

    Raises:
        ConfigError, DataError, PolicyError: a world, a question file or a model cannot be used.
    """
    if place.world_size > config.rollout.questions_per_iteration:
        raise ConfigError(
            f"rollout.questions_per_iteration: expected at least {place.world_size}, one for each process, got "
            f"{config.rollout.questions_per_iteration}"
        )
    questions = checked_questions(config)
    if missing := missing_packages(config):
        remedy = _INSTALLED_BY.get(missing[0], f"pip install {missing[0]}")
        raise ConfigError(f"expected the package {missing[0]} for this recipe, got none; {remedy}")
    policy = build_policy(config, device=place.device)
    task = SearchTask(
        policy=policy,
        player=policy.twin() if config.rollout.staleness else policy,
        questions=questions,
        env={**env_keywords(config.env), "questions": questions},
        limits=RolloutLimits(
            live_episodes=config.rollout.live_episodes,
            batch_rows=config.rollout.live_episodes,
            batching=config.rollout.batching,
        ),
        evaluation_temperature=config.evaluation.temperature,
    )
    return Parts(
        policy=policy,
        task=task,
        algorithm=build_algorithm(config),
        adam=adam_settings(config),
        test_questions=evaluation_questions(config),
        questions_during=questions_during(config) if config.evaluation.every else [],
    )


def missing_packages(config: RunConfig) -> list[str]:
    """Packages that the recipe needs beside the project's own, and that are not installed here."""
    wanted = {
        config.output.tracker: config.output.tracker != "none",
        "vllm": config.rollout.engine == "vllm",
        "flash_attn": config.policy.attention == "flash_attention_2",
    }
    return [name for name, is_wanted in wanted.items() if is_wanted and importlib.util.find_spec(name) is None]


def checked_questions(config: RunConfig) -> QuestionSet:
    """The questions trained on, after a look at everything else that can be wrong without a model.

    Raises:
        ConfigError, DataError: a world, a question file, a tool or a rule cannot be used.
    """
    questions = training_questions(config)
    MMSearchEnv(**env_keywords(config.env), questions=questions)
    build_algorithm(config)
    sampling_engine(config)
    return questions


def description(config: RunConfig) -> list[str]:
    """What a run would do, after checking its questions and its environment; no weights are needed.

    Raises:
        ConfigError, DataError: a world, a question file or a rule cannot be used.
    """
    questions, test = checked_questions(config), evaluation_questions(config)
    rollout_config = config.rollout
    episodes = config.iterations * rollout_config.questions_per_iteration * rollout_config.group_size
    passes = config.iterations * rollout_config.questions_per_iteration / len(questions)
    model = model_folder(config.policy.model)
    where = "a folder here" if model.is_dir() else "not a folder here: a hub id, fetched when the run starts"
    return [
        f"model       {model} ({where})",
        f"questions   {len(questions)} to train on ({passes:.2g} passes), {len(test)} before and after",
        f"episodes    {episodes} = {config.iterations} iterations x {rollout_config.questions_per_iteration} questions "
        f"x {rollout_config.group_size}",
        f"updates     {config.optimiser_steps} optimiser steps at most",
        f"output      {config.output.folder}",
        *(f"missing     the package {name}, which is not installed here" for name in missing_packages(config)),
    ]
