"""Training in processes of its own, for commands that train several recipes one after the other."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence

from mmsearch_env.errors import DataError
from training.config.file import read_config
from training.run import is_finished


def seeds_in(text: str) -> list[int]:
    """``0,1,2`` of a command line. Raises ValueError."""
    return [int(part) for part in text.split(",")]


def train_in_processes(recipe: str, overrides: Sequence[str], *, processes: int) -> None:
    """Train a recipe to its end; a finished one is only shown again.

    Raises:
        DataError: training did not come to its end.
    """
    launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    status = _run([sys.executable, "-m", *launcher, "training", recipe, *overrides])
    config = read_config(recipe, overrides)
    if status or not is_finished(config):
        raise DataError(
            f"{config.output.folder}: expected a finished run, got exit status {status}; the same command goes on"
        )


def _run(command: Sequence[str]) -> int:
    """Run a command that ends politely when asked to, and give its exit status: signals are passed on and waited for.

    It has a session of its own, so that a signal to a group of processes, as of Ctrl-C, reaches it once and not twice.
    """
    launched: list[subprocess.Popen[bytes]] = []
    early: list[int] = []

    def pass_on(number: int, _: object) -> None:
        for process in launched:
            process.send_signal(number)
        if not launched:
            early.append(number)

    previous = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        launched.append(subprocess.Popen(command, start_new_session=True))
        for number in early:
            launched[0].send_signal(number)
        return launched[0].wait()
    finally:
        for number, old in previous.items():
            signal.signal(number, old)
