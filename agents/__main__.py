"""``python -m agents evaluate`` and ``python -m agents label``; add ``--help`` for the options."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from agents.engines.hf import SamplingLimits
from agents.evaluate import evaluate
from agents.labels import EPISODES, LABELS_FILE, load_labels, measure_labels, save_labels
from agents.lmm import LMMPolicy, LoRASettings
from agents.rollout import MakeEnv
from agents.tables import evaluation_table
from agents.trajectory import Trajectory
from agents.workflows import WORKFLOWS, Workflow
from mmsearch_env.env import MMSearchEnv
from mmsearch_env.errors import ConfigError, MMSearchError
from mmsearch_env.questions import QuestionSet
from mmsearch_env.resources import resolve_questions


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    options = _parser().parse_args(arguments)
    console = Console(stderr=True)
    try:
        options.run(options, console)
    except MMSearchError as error:
        console.print(f"[red]{type(error).__name__}:[/red] {error}")
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m agents", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--model", default="atlas-tiny", help="bundled name, checkpoint folder or hub id (%(default)s)")
    common.add_argument("--adapter", type=Path, help="folder of a LoRA adapter to put on the model")
    common.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    common.add_argument("--device", default="cpu")
    common.add_argument("--world", default="atlas", help="embedded world (%(default)s)")
    common.add_argument("--questions", help="a question file instead of the world's own questions")
    common.add_argument("--limit", type=int, default=0, help="only that many questions; 0 for all")
    common.add_argument("--prompts", default="brief", help="standard, brief or a folder (%(default)s)")
    common.add_argument("--max-new-tokens", type=int, default=64)
    common.add_argument("--max-context-tokens", type=int, default=1024)
    common.add_argument("--seed", type=int, default=0)
    common.add_argument("--out", type=Path, help="where to write the result as JSON")
    scoring = commands.add_parser("evaluate", parents=[common], help="score a model under one or more workflows")
    scoring.add_argument("--workflow", action="append", choices=tuple(WORKFLOWS), help="may be given several times")
    scoring.add_argument("--split", default="test", help="train, validation, test or all (%(default)s)")
    scoring.add_argument("--temperature", type=float, default=0.0)
    scoring.set_defaults(run=_evaluate)
    labelling = commands.add_parser("label", parents=[common], help="measure which searches each question needs")
    labelling.add_argument("--split", default="all", help="train, validation, test or all (%(default)s)")
    labelling.set_defaults(run=_label)
    return parser


def _evaluate(options: argparse.Namespace, console: Console) -> None:
    if options.out is not None and not options.out.parent.is_dir():
        raise ConfigError(f"--out: expected a file in a folder that exists, got {options.out}; make the folder first")
    policy, questions = _policy(options, options.temperature), _questions(options)
    evaluations = []
    for name in options.workflow or ["on_demand"]:
        workflow = WORKFLOWS[name]
        with _EpisodeBar(console, name, len(questions)) as advance:
            evaluations.append(
                evaluate(
                    policy,
                    _make_env(options, questions)(workflow),
                    questions,
                    seed=options.seed,
                    workflow=workflow,
                    on_episode=advance,
                )
            )
    Console().print(evaluation_table(evaluations))
    if options.out:
        options.out.write_text(json.dumps([evaluation.to_json() for evaluation in evaluations], indent=1) + "\n")


def _label(options: argparse.Namespace, console: Console) -> None:
    if options.adapter is not None and options.out is None:
        raise ConfigError(
            "--adapter: expected --out too, got none; the labels beside a model are those of its own weights"
        )
    policy = _policy(options, 1.0)
    questions = _limited(options, resolve_questions(options.questions, options.world, options.split))
    with _EpisodeBar(console, "labelling", 0) as advance:
        labels = measure_labels(policy, _make_env(options, questions), questions, seed=options.seed, on_episode=advance)
    folder = _folder(options.model)
    out = options.out or folder / LABELS_FILE
    save_labels(labels, out, weights=folder)
    counts = Counter(labels.by_id.values())
    Console().print(f"{len(labels.by_id)} questions, {EPISODES} episodes a plan: {dict(counts)}\nwritten to {out}")


def _folder(model: str) -> Path:
    """The folder of a bundled checkpoint, or the path as given."""
    bundled = Path(str(files("agents"))) / "checkpoints" / model
    return bundled if bundled.is_dir() else Path(model)


def _policy(options: argparse.Namespace, temperature: float) -> LMMPolicy:
    folder = _folder(options.model)
    limits = SamplingLimits(max_new_tokens=options.max_new_tokens, temperature=temperature)
    settings = {"limits": limits, "max_context_tokens": options.max_context_tokens}
    path = folder if folder.is_dir() else options.model
    if options.adapter is None:
        return LMMPolicy.load(path, dtype=options.dtype, device=options.device, **settings)
    lora = LoRASettings.stored(options.adapter)
    policy = LMMPolicy.load(path, lora=lora, dtype=options.dtype, device=options.device, **settings)
    policy.load_adapter(options.adapter)
    return policy


def _questions(options: argparse.Namespace) -> QuestionSet:
    found = resolve_questions(options.questions, options.world, options.split)
    return _limited(options, load_labels(_folder(options.model)).on(found))


def _limited(options: argparse.Namespace, found: QuestionSet) -> QuestionSet:
    if options.limit < 0:
        raise ConfigError(f"--limit: expected 0 or more, got {options.limit}")
    return QuestionSet(found.name, list(found)[: options.limit or None], found.skipped)


def _make_env(options: argparse.Namespace, questions: QuestionSet) -> Callable[[Workflow], MakeEnv]:
    def under(workflow: Workflow) -> MakeEnv:
        def make() -> MMSearchEnv:
            return MMSearchEnv(
                world=options.world,
                questions=questions,
                prompts=options.prompts,
                image_top_k=3,
                text_top_k=3,
                **dict[str, Any](workflow.rules),
            )

        return make

    return under


class _EpisodeBar:
    """A bar that counts episodes while it is open."""

    def __init__(self, console: Console, name: str, total: int) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        self._bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console)
        self._task = self._bar.add_task(name, total=total or None)

    def __enter__(self) -> Callable[[Trajectory], None]:
        self._bar.start()
        return lambda trajectory: self._bar.advance(self._task)

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


if __name__ == "__main__":
    sys.exit(main())
