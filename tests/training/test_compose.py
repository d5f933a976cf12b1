from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from agents.labels import LABELS_FILE, UNSOLVED, Labels, save_labels
from mmsearch_env.env import MMSearchEnv
from mmsearch_env.errors import ConfigError
from training import compose
from training.algorithms import PRESETS
from training.algorithms.credit import ByReturn, FatalFailures, Overlong
from training.algorithms.policy_gradient import Clipped, Correction, PolicyGradient
from training.algorithms.ppo import PPO, Horizon
from training.config import RunConfig
from training.config.file import config_from_mapping
from training.engine import Place
from training.losses import clipped_surrogate
from training.trackers import TRACKERS

WORLD = {"world": "synthetic:seed=1,entities=12", "prompts": "brief"}


def recipe(**sections: Any) -> RunConfig:
    return config_from_mapping({"env": WORLD, **sections})


def test_the_environment_gets_every_setting() -> None:
    config = recipe(env={**WORLD, "max_rounds": 5, "search_penalty": 0.25, "tools": {"text_search": "local"}})
    env = MMSearchEnv(**compose.env_keywords(config.env))
    assert (env.rules.max_rounds, env.reward_rules.search_penalty) == (5, 0.25)


def test_a_tool_of_no_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="txt_search"):
        compose.description(recipe(env={**WORLD, "tools": {"txt_search": "local"}}))


def test_labels_of_the_model_become_categories_and_unsolved_questions_are_left_out(tmp_path: Path) -> None:
    everything = compose.training_questions(recipe(policy={"model": "no folder"}))
    labels = dict.fromkeys(everything.ids, "search_free") | {everything.ids[0]: UNSOLVED}
    save_labels(Labels.of(everything, labels), tmp_path / LABELS_FILE, weights=tmp_path, under={})
    found = compose.training_questions(recipe(policy={"model": str(tmp_path)}))
    assert found.ids == everything.ids[1:]
    assert {question.category for question in found} == {"search_free"}
    kept = compose.training_questions(recipe(policy={"model": str(tmp_path)}, rollout={"skip_unsolved": False}))
    assert kept.ids == everything.ids


def test_only_categories_that_there_are_can_be_repeated() -> None:
    with pytest.raises(ConfigError, match=r"rollout\.repeats: expected categories of the questions \(.+\), got 'hart'"):
        compose.training_questions(recipe(policy={"model": "no folder"}, rollout={"repeats": {"hart": 2}}))


def test_evaluation_questions_are_spread_and_never_trained_on() -> None:
    config = recipe(evaluation={"questions": 5, "during_questions": 4})
    test, during = compose.evaluation_questions(config), compose.questions_during(config)
    assert (len(test), len(during)) == (5, 4)
    trained = set(compose.training_questions(config).ids)
    assert not trained & {question.id for question in (*test, *during)}


def test_the_algorithm_gets_every_setting() -> None:
    section = {
        "clip_low": 0.1,
        "clip_high": 0.3,
        "kl_coefficient": 0.5,
        "advantage_scale": "none",
        "aggregation": "constant",
        "returns": "to_go",
        "correction": "sequence",
        "overlong_tokens": 90,
        "overlong_margin": 9,
        "fatal_failures": 3,
    }
    assert compose.build_algorithm(recipe(algorithm=section)) == PolicyGradient(
        ByReturn("group", "none", "to_go"),
        Clipped(clipped_surrogate, 0.1, 0.3),
        "constant",
        episode_tokens=3 * 256.0,
        kl_coefficient=0.5,
        correction=Correction("sequence", 2.0),
        overlong=Overlong(90, 9),
        fatal=FatalFailures(3),
    )


def test_the_critic_gets_every_setting() -> None:
    section = {
        "learning_rate_factor": 3.0,
        "value_coefficient": 0.25,
        "value_clip": 0.4,
        "token_discount": 0.99,
        "token_decay": 0.98,
        "turn_discount": 0.97,
        "turn_decay": 0.96,
    }
    config = recipe(algorithm={"name": "ppo"}, critic={"trunk": "detached", **section})
    algorithm = compose.build_algorithm(config)
    assert isinstance(algorithm, PPO)
    assert algorithm.horizon == Horizon(0.99, 0.98, 0.97, 0.96)
    assert (algorithm.value_coefficient, algorithm.value_clip) == (0.25, 0.4)
    assert compose.adam_settings(config).rates == {"critic.": 3.0}
    assert compose.adam_settings(recipe()).rates == {}


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_algorithm_can_be_named(name: str) -> None:
    assert compose.build_algorithm(recipe(algorithm={"name": name})).logged


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [("rloo", "advantage_scale", "none"), ("gspo", "aggregation", "token"), ("grpo", "baseline", "batch"),
     ("ppo", "returns", "to_go")],
)  # fmt: skip
def test_an_option_without_effect_is_refused(name: str, option: str, value: str) -> None:
    config = recipe(algorithm={"name": name, option: value})
    with pytest.raises(ConfigError, match=f"algorithm.{option}: expected .* with algorithm '{name}', got '{value}'"):
        compose.build_algorithm(config)


def test_every_process_needs_a_question() -> None:
    config = recipe(rollout={"questions_per_iteration": 3})
    with pytest.raises(ConfigError, match="expected at least 4, one for each process, got 3"):
        compose.build_parts(config, Place(0, 4, torch.device("cpu")))


@pytest.mark.parametrize(
    ("section", "option", "package"),
    [
        *(("output", {"tracker": name}, name) for name in TRACKERS),
        ("policy", {"attention": "flash_attention_2"}, "flash_attn"),
        ("rollout", {"engine": "vllm"}, "vllm"),
    ],
)
def test_a_package_that_is_missing_is_said_before_weights_are_loaded(
    section: str, option: dict[str, str], package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = recipe(**{section: option})
    monkeypatch.setattr(compose.importlib.util, "find_spec", lambda name: None if name == package else object())
    monkeypatch.setattr(compose, "build_policy", None)  # not reached
    with pytest.raises(ConfigError, match=f"expected the package {package} for this recipe, got none; pip install"):
        compose.build_parts(config, Place(0, 1, torch.device("cpu")))


def test_gradient_checkpointing_reaches_the_model() -> None:
    place = torch.device("cpu")

    def checkpointed(**settings: Any) -> set[bool]:
        model = compose.build_policy(recipe(**settings), device=place).model
        found = (getattr(module, "gradient_checkpointing", None) for module in model.modules())
        return {one for one in found if one is not None}

    assert checkpointed() == {False}
    assert True in checkpointed(engine={"gradient_checkpointing": True})
