"""How the cost of an iteration grows with the group, the prompt, the pictures and the turns; a picture of it.

    python tests/benchmarks/trainer_growth.py --plot growth.png

One thing is changed at a time, from the first setup of ``trainer.py``; with turns come completions of 24 tokens and a
picture in each observation. Beside the seconds stand the tokens that are run, P + G x R, and those of an iteration in
which every episode runs its prompt again, G x (P + R).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from measuring import note, report
from trainer import in_process
from trainer_models import SETUPS, Setup

_TOOLS = {"turns": {"observation_tokens": 61, "completion_tokens": 24}}
_CHANGES: Mapping[str, Sequence[int]] = {
    "group_size": (2, 4, 8, 16, 32),
    "prompt_tokens": (400, 800, 1600),
    "pictures": (1, 2, 4),
    "turns": (1, 2, 3, 4),
}
_QUICK: Mapping[str, Sequence[int]] = {"group_size": (2, 3)}


def changed(base: Setup, name: str, value: int) -> Setup:
    """The setup with one thing changed; with pictures the prompt grows by what they need."""
    made = replace(base, **{name: value}, **_TOOLS.get(name, {}))
    return (
        replace(made, prompt_tokens=base.prompt_tokens + 110 * (value - base.pictures)) if name == "pictures" else made
    )


def measured(setup: Setup, iterations: int) -> dict[str, Any]:
    """Median CPU seconds of one setup, in a process of its own."""
    found = in_process("trainer.py", "--given", json.dumps(asdict(setup)), iterations)
    prompt, rest = found["tokens"]
    return {
        "cpu_s": {part: round(statistics.median(values), 4) for part, values in found["cpu_s"].items()},
        "tokens": setup.group_size * rest + prompt,
        "tokens_unshared": setup.group_size * (prompt + rest),
        "peak_rss_mb": found["peak_rss_mb"],
    }


def draw(table: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """One panel for each thing that was changed."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(table), figsize=(3.4 * len(table), 3.1), sharey=True, squeeze=False)
    for panel, (name, points) in zip(panels[0], table.items(), strict=True):
        values = [int(value) for value in points]
        rollout = [point["cpu_s"]["rollout"] for point in points.values()]
        whole = [point["cpu_s"]["all"] for point in points.values()]
        panel.fill_between(values, 0, rollout, alpha=0.35, label="rollout")
        panel.fill_between(values, rollout, whole, alpha=0.35, label="learning and the rest")
        panel.plot(values, whole, marker="o", color="black", linewidth=1, label="iteration")
        panel.set_xlabel(name.replace("_", " "))
        panel.set_xticks(values)
        panel.grid(alpha=0.2)
    panels[0][0].set_ylabel("CPU seconds")
    panels[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main(arguments: Sequence[str]) -> None:
    """Measure and draw."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--quick", action="store_true", help="a tiny setup, two points, 1 iteration")
    given = parser.parse_args(arguments)
    base, changes, iterations = SETUPS["S1"], _CHANGES, given.iterations
    if given.quick:
        base, changes, iterations = SETUPS["quick"], _QUICK, 1
    table: dict[str, dict[str, Any]] = {}
    for name, values in changes.items():
        for value in values:
            note(f"{name} {value}")
            table.setdefault(name, {})[str(value)] = measured(changed(base, name, value), iterations)
    if given.plot:
        draw(table, given.plot)
    settings = {"iterations": iterations, "base": asdict(base)}
    report("trainer_growth", settings, ("torch", "transformers", "peft", "deepspeed"), table=table)


if __name__ == "__main__":
    main(sys.argv[1:])
