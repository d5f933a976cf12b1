"""Every registered id keeps Gymnasium's contract."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from typing import Any

import gymnasium
import pytest
from gymnasium.envs.registration import EnvSpec, registry
from gymnasium.utils.env_checker import check_env

import mmsearch_env
from mmsearch_env.env import MMSearchEnv
from mmsearch_env.registration import ENTRIES, register_envs

IDS = [entry.id for entry in ENTRIES]
# Every environment `make` returns is wrapped, and the checker remarks on that before it checks anything.
WRAPPED = ".*different from the unwrapped version.*"


@pytest.mark.parametrize("name", IDS)
@pytest.mark.parametrize(
    "arguments",
    [{}, {"world": "synthetic:seed=3,entities=60", "history": "episode", "crop": True, "reward": "subtractive"}],
    ids=["default", "other"],
)
def test_the_checker_has_no_remarks(name: str, arguments: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    env = gymnasium.make(name, **arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)
        warnings.filterwarnings("ignore", WRAPPED)
        check_env(env)
    capsys.readouterr()  # the checker tries render mode "human"


@pytest.mark.parametrize("name", IDS)
def test_an_id_survives_json(name: str) -> None:
    text = gymnasium.make(name, max_rounds=5, prompts="brief").spec.to_json()  # type: ignore[union-attr]
    env = gymnasium.make(EnvSpec.from_json(text))
    assert isinstance(env.unwrapped, MMSearchEnv)
    assert env.unwrapped.rules.max_rounds == 5
    assert json.loads(text)["entry_point"] == "mmsearch_env.env:MMSearchEnv"


@pytest.mark.parametrize(
    "code",
    [
        "import gymnasium; gymnasium.make('mmsearch_env:MMSearch-v0')",
        "import gymnasium, mmsearch_env; gymnasium.make('MMSearch-v0')",
        "import gymnasium; gymnasium.make_vec('mmsearch_env:MMSearch-v0', num_envs=2)",
        "import gymnasium; from gymnasium.envs.registration import EnvSpec; "
        "gymnasium.make(EnvSpec('MMSearch-v0', entry_point='mmsearch_env.env:MMSearchEnv'))",
    ],
    ids=["module prefix", "import", "vector", "spec without import"],
)
def test_every_documented_spelling_works_in_a_fresh_interpreter(code: str) -> None:
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_registering_twice_changes_nothing() -> None:
    before = {name: registry[name] for name in IDS}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        register_envs()
        mmsearch_env.register_envs()
    assert {name: registry[name] for name in IDS} == before


@pytest.mark.parametrize("name", IDS)
def test_two_runs_with_one_seed_are_the_same(name: str) -> None:
    runs = []
    for _ in range(2):
        env = gymnasium.make(name)
        env.action_space.seed(9)
        record: list[Any] = [env.reset(seed=9)]
        for _ in range(30):
            record.append(env.step(env.action_space.sample()))
            if record[-1][2]:
                record.append(env.reset())
        runs.append(repr(record))
    assert runs[0] == runs[1]
