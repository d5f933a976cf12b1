"""What the benchmarks share: taking turns, percentiles, memory, and one JSON object at the end.

What is compared takes turns in one process, round by round, so that a busy neighbour slows all of it alike.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

Work = Callable[[], object]


def in_turns(work: Mapping[str, Sequence[Work]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every call, by name.

    Args:
        work: name -> calls; the n-th calls of all names belong together and are made one after the other.
        rounds: how often all of it is done; the first time does not count.
    """
    taken: dict[str, list[float]] = {name: [] for name in work}
    for number in range(rounds + 1):
        for together in zip(*work.values(), strict=True):
            for name, call in zip(work, together, strict=True):
                begin = time.perf_counter()
                call()
                if number:
                    taken[name].append(time.perf_counter() - begin)
    return taken


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


def memory_mb() -> dict[str, float]:
    """What this process has in memory, and what of it is its own and no mapped file, in megabytes."""
    text = Path("/proc/self/smaps_rollup").read_text(encoding="ascii")
    lines = {line.split(":")[0]: line.split()[1] for line in text.splitlines() if line.endswith("kB")}
    return {"rss_mb": int(lines["Rss"]) / 1e3, "anonymous_mb": int(lines["Anonymous"]) / 1e3}


def note(text: str) -> None:
    """Say how it goes."""
    print(text, file=sys.stderr, flush=True)


def report(name: str, settings: Mapping[str, Any], packages: Sequence[str], **found: Any) -> None:
    """Print the result."""
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "load_1min": round(os.getloadavg()[0], 2)}
    versions = {package: version(package) for package in packages}
    shown = {key: str(value) if isinstance(value, Path) else value for key, value in settings.items()}
    print(json.dumps({"benchmark": name, "settings": shown, "machine": machine, "versions": versions, **found}))
