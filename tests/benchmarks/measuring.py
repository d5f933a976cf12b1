"""What the benchmarks share: taking turns, percentiles, memory, and one JSON object at the end.

What is compared takes turns in one process, call by call, so that a busy neighbour slows all of it alike; who goes
first changes from call to call, so that nobody always finds the processor's caches warmed by another.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import CoroutineType
from typing import Any

Work = Callable[[], object]


async def awaited_in_turns(
    work: Mapping[str, Sequence[Work]], rounds: int, *, warm_up: bool = True
) -> dict[str, list[float]]:
    """Seconds of every call, by name; where a call gives a coroutine, of that as well.

    Args:
        work: name -> calls; the n-th calls of all names belong together and are made one after the other.
        rounds: how often all of it is done.
        warm_up: do all of it once more before, which does not count.
    """
    taken: dict[str, list[float]] = {name: [] for name in work}
    for number in range(0 if warm_up else 1, rounds + 1):
        for place, together in enumerate(zip(*work.values(), strict=True)):
            turns = list(zip(work, together, strict=True))
            for name, call in turns if (number + place) % 2 else reversed(turns):
                begin = time.perf_counter()
                found = call()
                if type(found) is CoroutineType:
                    await found
                end = time.perf_counter()
                if number:
                    taken[name].append(end - begin)
    return taken


def in_turns(work: Mapping[str, Sequence[Work]], rounds: int, *, warm_up: bool = True) -> dict[str, list[float]]:
    """The same outside an event loop."""
    return asyncio.run(awaited_in_turns(work, rounds, warm_up=warm_up))


def rates_in_turns(work: Mapping[str, Work], amount: int, rounds: int) -> dict[str, int]:
    """Median of how much is done in a second, by name.

    Args:
        work: name -> a call that does ``amount`` pieces of work.
        amount: see there.
        rounds: how often each is called; a first time before these does not count.
    """
    taken: dict[str, list[float]] = {name: [] for name in work}
    for number in range(rounds + 1):
        for name in list(work) if number % 2 else reversed(work):
            begin = time.perf_counter()
            work[name]()
            if number:
                taken[name].append(time.perf_counter() - begin)
    return {name: round(amount / statistics.median(seconds)) for name, seconds in taken.items()}


def figures(seconds: Sequence[float]) -> dict[str, float]:
    """Median, 99th percentile and mean, in milliseconds."""
    ordered = sorted(seconds)
    return {
        "p50_ms": round(statistics.median(ordered) * 1e3, 5),
        "p99_ms": round(ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))] * 1e3, 5),
        "mean_ms": round(statistics.fmean(ordered) * 1e3, 5),
    }


def ratio(ours: Sequence[float], plain: Sequence[float]) -> dict[str, float]:
    """Ours over the plain one: of medians and of sums."""
    return {
        "of_medians": round(statistics.median(ours) / statistics.median(plain), 3),
        "of_sums": round(sum(ours) / sum(plain), 3),
    }


def memory_mb(pid: int | str = "self") -> dict[str, float]:
    """What a process has in memory, in megabytes: all, what no other process has, and what is no mapped file."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    kb = {line.split(":")[0]: int(line.split()[1]) for line in text.splitlines() if line.endswith("kB")}
    return {
        "rss_mb": kb["Rss"] / 1e3,
        "private_mb": (kb["Private_Clean"] + kb["Private_Dirty"]) / 1e3,
        "anonymous_mb": kb["Anonymous"] / 1e3,
    }


def in_own_process(script: str, *arguments: str) -> dict[str, Any]:
    """What a script prints as JSON when it is run in a new process."""
    done = subprocess.run([sys.executable, script, *arguments], check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def note(text: str) -> None:
    """Say how it goes."""
    print(text, file=sys.stderr, flush=True)


def report(name: str, settings: Mapping[str, Any], packages: Sequence[str], **found: Any) -> None:
    """Print the result; of packages that are not installed the version is null."""
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "load_1min": round(os.getloadavg()[0], 2)}
    versions = {package: _version(package) for package in packages}
    shown = {key: str(value) if isinstance(value, Path) else value for key, value in settings.items()}
    print(json.dumps({"benchmark": name, "settings": shown, "machine": machine, "versions": versions, **found}))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
