"""The trainer's tests share one small policy and one process group."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# bandit.py is imported by name here and by the scripts that tests start as processes
sys.path.insert(0, str(Path(__file__).parent))

from bandit import GuessPolicy, GuessTask, guess_questions
from tiny_run import saved_model

from training.engine import Place, join, leave


@pytest.fixture
def place() -> Iterator[Place]:
    """This process, alone in its run, whatever runs it was in before."""
    yield join(timeout_s=60.0)
    leave()


@pytest.fixture
def guess_task() -> GuessTask:
    """The guessing game with a fresh policy."""
    return GuessTask(GuessPolicy(), guess_questions())


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2.5-VL of a few thousand random weights."""
    return saved_model(tmp_path_factory.mktemp("model"))
