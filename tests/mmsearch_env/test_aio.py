"""The background loop."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import pytest

from mmsearch_env import aio
from mmsearch_env.errors import EpisodeError
from mmsearch_env.net.per_loop import PerLoop

AFTER_A_FORK = """
import os
from mmsearch_env import aio

async def where():
    return os.getpid()

assert aio.run(where()) == os.getpid()
child = os.fork()
if child == 0:
    os._exit(0 if aio.run(where()) == os.getpid() else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert aio.run(where()) == os.getpid()
"""


async def thread_name() -> str:
    await asyncio.sleep(0)
    return threading.current_thread().name


def test_everything_runs_on_one_loop() -> None:
    assert aio.run(thread_name()) == "mmsearch-env-loop"
    assert aio.background_loop() is aio.background_loop()


def test_errors_come_through() -> None:
    async def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        aio.run(fail())


def test_a_caller_inside_another_loop_is_served() -> None:
    async def caller() -> str:
        return aio.run(thread_name())

    assert asyncio.run(caller()) == "mmsearch-env-loop"


def test_waiting_for_itself_is_an_error_not_a_deadlock() -> None:
    async def inner() -> str:
        return aio.run(thread_name())

    with pytest.raises(EpisodeError, match="astep"):
        aio.run(inner())


def test_a_forked_child_has_a_loop_of_its_own() -> None:
    done = subprocess.run([sys.executable, "-c", AFTER_A_FORK], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


def test_what_belongs_to_a_closed_loop_is_let_go() -> None:
    """Also where it knows its loop, as connections do."""
    made = PerLoop(asyncio.get_running_loop)

    async def use() -> None:
        made.get()

    for _ in range(3):
        asyncio.run(use())
    assert len(made._by_loop) == 1
