from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmsearch_env.errors import ConfigError
from mmsearch_env.settings import EnvSettings
from training.config import EnvConfig, RunConfig
from training.config.file import config_from_mapping, fields_of, read_config, to_mapping

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "training" / "configs").glob("*.yaml"))


def recipe(folder: Path, text: str) -> str:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return str(path)


def test_an_empty_recipe_is_all_defaults(tmp_path: Path) -> None:
    assert read_config(recipe(tmp_path, "")) == RunConfig()


def test_sections_and_overrides_in_order(tmp_path: Path) -> None:
    config = read_config(
        recipe(tmp_path, "seed: 4\nrollout:\n  group_size: 6\n"),
        ["rollout.group_size=5", "optimiser.learning_rate=1e-4", "seed=9", "env.crop=true", "seed=11"],
    )
    assert (config.rollout.group_size, config.optimiser.learning_rate, config.seed) == (5, 1e-4, 11)
    assert config.env.crop is True


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "rollout.group_sice=4",
            r"rollout\.group_sice: unknown key; did you mean 'group_size'\?; section 'rollout' knows",
        ),
        ("group_size=4", r"group_size: unknown key; did you mean 'rollout\.group_size'\?"),
        ("rolout.group_size=4", r"rolout: unknown key; did you mean 'rollout'\?"),
        ("rollout.group_size=four", r"rollout\.group_size: expected a whole number, got 'four'"),
        ("rollout.group_size=4.0", r"rollout\.group_size: expected a whole number, got 4\.0"),
        ("rollout.group_size=true", r"rollout\.group_size: expected a whole number, got True"),
        ("rollout.group_size=1", r"rollout\.group_size: expected a whole number at least 2, got 1"),
        ("optimiser.learning_rate=0", r"optimiser\.learning_rate: expected a number greater than 0, got 0\.0"),
        ("optimiser.learning_rate=fast", r"optimiser\.learning_rate: expected a number, got 'fast'"),
        ("engine.zero_stage=4", r"engine\.zero_stage: expected a whole number at least 0 and at most 3, got 4"),
        ("algorithm.name=gpro", r"algorithm\.name: expected 'grpo' or .* or 'ppo', got 'gpro'; did you mean 'gspo'\?"),
        ("env.crop=maybe", r"env\.crop: expected true or false, got 'maybe'"),
        ("env.tools=local", r"env\.tools: expected keywords and their values, got 'local'"),
        ("rollout.repeats=4", r"rollout\.repeats: expected keywords and their values, got 4"),
        ("rollout.repeats.hard=0", r"rollout\.repeats\.hard: expected a whole number at least 1, got 0"),
        ("rollout.repeats.hard=often", r"rollout\.repeats\.hard: expected a whole number, got 'often'"),
        ("rollout=4", r"rollout: expected a section with keys, got 4; set one of rollout\.\w+, rollout\.\w+,"),
        ("seed", r"expected section\.key=value, got 'seed'"),
        ("algorithm.correction_cap=3", r"algorithm\.correction_cap: expected 2 with correction 'none', got 3"),
        ("optimiser.decay_centre=5", r"optimiser\.decay_centre: expected 0 with schedule 'constant', got 5"),
        ("optimiser.final_fraction=0.5", r"optimiser\.final_fraction: expected 0 with schedule 'constant', got 0\.5"),
        ("algorithm.questions_per_update=999", r"at most rollout\.questions_per_iteration \(16\), got 999"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_config(recipe(tmp_path, ""), [override])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rollout.max_context_tokens=256", "expected more than rollout.max_new_tokens"),
        ("policy.adapter=/no/such/adapter", "expected the folder of an adapter"),
        ("optimiser.learning_rate=.inf", "optimiser.learning_rate"),
    ],
)
def test_what_could_only_fail_later_is_refused_at_once(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_config("quickstart", ["rollout.max_new_tokens=256", "rollout.max_context_tokens=512", override])


def test_a_file_that_is_missing_or_no_yaml_mapping(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"bundled recipe \(.*\), got 'quickstat'; did you mean 'quickstart'\?"):
        read_config("quickstat")
    with pytest.raises(ConfigError, match="expected YAML"):
        read_config(recipe(tmp_path, "a: [1,"))
    with pytest.raises(ConfigError, match="expected a mapping of sections, got list"):
        read_config(recipe(tmp_path, "- 1"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_bundled_recipes_are_valid(path: Path) -> None:
    config = read_config(path.stem)
    assert config.output.folder == f"runs/{path.stem}"


def test_a_configuration_survives_the_way_through_yaml() -> None:
    config = read_config("qwen2_5_vl_7b")
    assert config_from_mapping(yaml.safe_load(yaml.safe_dump(to_mapping(config)))) == config


def test_the_papers_update_arithmetic() -> None:
    config = read_config("qwen2_5_vl_7b")
    assert (config.updates_per_epoch, config.optimiser_steps) == (4, 200)


def leaves() -> list[tuple[str, Any]]:
    sections = [
        ("", RunConfig),
        *((f"{name}.", kind) for name, (kind, about) in fields_of(RunConfig).items() if not about),
    ]
    return [
        (prefix + name, about)
        for prefix, kind in sections
        for name, (_, about) in fields_of(kind).items()
        if about is not None
    ]


def test_every_field_says_what_it_means_in_one_sentence() -> None:
    for name, about in leaves():
        assert about.meaning.endswith((".", ". ")), name


def test_the_documentation_lists_every_field() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()
    for name, about in leaves():
        row = next((line for line in text.splitlines() if line.startswith(f"| `{name}` |")), "")
        assert about.meaning.replace("|", "\\|") in row, name


def test_the_env_section_is_the_environment() -> None:
    settings = {item.name: item.default for item in dataclasses.fields(EnvSettings)}
    ours = {item.name: item.default for item in dataclasses.fields(EnvConfig)}
    assert set(ours) == (set(settings) | {"questions", "tools", "judge"}) - {"history"}
    for name in set(ours) - {"questions", "tools", "judge"}:
        assert ours[name] == settings[name], name


def test_a_number_may_be_left_out_where_it_may(tmp_path: Path) -> None:
    for text, value in (("null", None), ("0.25", 0.25), ("0", 0.0)):
        path = tmp_path / "recipe.yaml"
        path.write_text(f"env:\n  image_penalty: {text}\n")
        assert read_config(path).env.image_penalty == value
    for text in ("much", "2.0", "true"):
        path.write_text(f"env:\n  image_penalty: {text}\n")
        with pytest.raises(ConfigError, match="env.image_penalty: expected a number"):
            read_config(path)
