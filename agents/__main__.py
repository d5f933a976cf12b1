"""``python -m agents evaluate`` and ``python -m agents label``; add ``--help`` for the options."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from agents.evaluate import Evaluation, evaluate
from agents.labelling import measured_labels
from agents.labels import EPISODES, LABELS_FILE, labels_in, load_labels, save_labels
from agents.playing import Playing
from agents.policy import Policy
from agents.recording import write_recording
from agents.tables import evaluation_table
from agents.workflows import WORKFLOWS, Workflow
from mmsearch_env.errors import ConfigError, MMSearchError, PolicyError
from mmsearch_env.questions import QuestionSet
from mmsearch_env.resources import resolve_questions

_USUAL = Playing()
# Options that a training run brings itself.
_OF_MODEL = ("model", "adapter", "dtype", "max_new_tokens", "max_context_tokens", "endpoint", "key_variable")
_OF_WEIGHTS = ("adapter", "dtype")
_OF_ENV = ("world", "prompts")
_LABELLED_AT_ONCE = 128
"""Questions after which labels are written, so that a stopped command goes on."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    options = _parser().parse_args(arguments)
    console = Console(stderr=True)
    try:
        options.call(options, console)
    except MMSearchError as error:
        console.print(f"[red]{type(error).__name__}:[/red] ", end="")
        console.print(str(error), markup=False, highlight=False, soft_wrap=True)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m agents", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--model", help=f"bundled name, checkpoint folder or hub id ({_USUAL.model})")
    common.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help=f"of the weights ({_USUAL.dtype})")
    common.add_argument("--device", default="cpu")
    common.add_argument("--world", help=f"embedded world ({_USUAL.env['world']})")
    common.add_argument("--questions", help="a question file instead of the world's own questions")
    common.add_argument("--limit", type=int, default=0, help="only that many questions, spread evenly; 0 for all")
    common.add_argument("--prompts", help=f"standard, brief or a folder ({_USUAL.env['prompts']})")
    common.add_argument("--max-new-tokens", type=int, help=f"of a completion ({_USUAL.max_new_tokens})")
    common.add_argument("--max-context-tokens", type=int, help=f"of a conversation ({_USUAL.max_context_tokens})")
    common.add_argument("--seed", type=int, default=0)
    common.add_argument("--out", type=Path, help="where to write the result as JSON")
    scoring = commands.add_parser("evaluate", parents=[common], help="score a model under one or more workflows")
    scoring.add_argument("--run", type=Path, help="folder of a training run: its model, adapter and environment")
    scoring.add_argument("--adapter", type=Path, help="folder of a LoRA adapter to put on the model")
    scoring.add_argument("--endpoint", metavar="URL", help="OpenAI-compatible end point where the model is")
    scoring.add_argument("--key-variable", metavar="NAME", help="environment variable with the end point's key")
    scoring.add_argument("--workflow", action="append", choices=tuple(WORKFLOWS), help="may be given several times")
    scoring.add_argument("--split", default="test", help="train, validation, test or all (%(default)s)")
    scoring.add_argument(
        "--record", type=Path, metavar="FOLDER", help="add the episodes, token by token, to a recording"
    )
    scoring.add_argument("--temperature", type=float, help="of sampling (default 0, or the run's own)")
    scoring.set_defaults(call=_evaluate)
    labelling = commands.add_parser("label", parents=[common], help="measure which searches each question needs")
    labelling.add_argument("--split", default="all", help="train, validation, test or all (%(default)s)")
    labelling.add_argument("--processes", type=int, default=1, help="CPU processes that share the work (%(default)s)")
    labelling.set_defaults(call=_label, run=None, adapter=None, temperature=None, endpoint=None, key_variable=None)
    return parser


def _evaluate(options: argparse.Namespace, console: Console) -> None:
    if options.out is not None and not options.out.parent.is_dir():
        raise ConfigError(f"--out: expected a file in a folder that exists, got {options.out}; make the folder first")
    playing = _playing(options)
    questions = load_labels(playing.folder).on(_questions(options, playing))
    with playing.player() as policy:
        chosen = [WORKFLOWS[name] for name in options.workflow or ["on_demand"]]
        evaluations = [_scored(policy, playing, questions, workflow, options.seed, console) for workflow in chosen]
    Console().print(evaluation_table(evaluations))
    for evaluation in evaluations:
        if evaluation.unplayed:
            Console().print(f"{evaluation.workflow}: {evaluation.unplayed} of {len(questions)} questions not played")
    if options.record is not None:
        count = sum(write_recording(options.record, evaluation.trajectories) for evaluation in evaluations)
        Console().print(f"{count} episodes added to {options.record}", highlight=False, soft_wrap=True)
    if options.out:
        options.out.write_text(json.dumps([evaluation.to_json() for evaluation in evaluations], indent=1) + "\n")


def _scored(
    policy: Policy, playing: Playing, questions: QuestionSet, workflow: Workflow, seed: int, console: Console
) -> Evaluation:
    with _Bar(console, workflow.name, len(questions)) as bar:
        make_env = playing.make_env(workflow)
        found = evaluate(policy, make_env, questions, seed=seed, workflow=workflow, on_episode=lambda _: bar.advance(1))
    if found.unplayed == len(questions):
        raise PolicyError(
            f"expected questions that can be played, got none of {len(questions)}: all were cut off before their first "
            "turn; check that the end point is running and reachable (--endpoint), or --max-context-tokens and pictures"
        )
    return found


def _label(options: argparse.Namespace, console: Console) -> None:
    if options.processes < 1:
        raise ConfigError(f"--processes: expected 1 or more, got {options.processes}")
    playing = _playing(options)
    if not any(playing.folder.glob("*.safetensors")):
        raise ConfigError(f"--model: expected a folder with weights that labels can be bound to, got {playing.folder}")
    questions = _questions(options, playing)
    out = options.out or playing.folder / LABELS_FILE
    under = playing.conditions()
    labels = labels_in(out, weights=playing.folder, under=under).about(questions)
    left = [question for question in questions if question.id not in labels.by_id]
    parts = [left[start : start + _LABELLED_AT_ONCE] for start in range(0, len(left), _LABELLED_AT_ONCE)]
    with _Bar(console, "labelled", len(questions), done=len(labels.by_id)) as bar:
        for measured in measured_labels(playing, parts, seed=options.seed, processes=options.processes):
            labels = save_labels(measured, out, weights=playing.folder, under=under)
            bar.advance(len(measured.by_id))
    counts = Counter(labels.about(questions).by_id.values())
    where = f"written to {out}" if left else f"nothing was left to measure; all are in {out}"
    Console().print(f"{len(questions)} questions, {EPISODES} episodes a plan: {dict(counts)}\n{where}")


def _playing(options: argparse.Namespace) -> Playing:
    if options.run is not None:
        if given := [name for name in (*_OF_MODEL, *_OF_ENV) if getattr(options, name) is not None]:
            named = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise ConfigError(
                f"--run: expected no {named} beside it, since a run brings its own; leave one of them out"
            )
        found = Playing.of_run(options.run, device=options.device)
        return found if options.temperature is None else replace(found, temperature=options.temperature)
    if options.endpoint and (given := [name for name in _OF_WEIGHTS if getattr(options, name) is not None]):
        raise ConfigError(f"--endpoint: expected no --{given[0]} beside it, which is for weights in this process")
    if options.key_variable and not options.endpoint:
        raise ConfigError("--key-variable: expected --endpoint beside it, got none")
    model, env = (
        {name: value for name in names if (value := getattr(options, name)) is not None}
        for names in (_OF_MODEL, _OF_ENV)
    )
    temperature = options.temperature or 0.0
    return Playing(**model, device=options.device, temperature=temperature, env={**_USUAL.env, **env})


def _questions(options: argparse.Namespace, playing: Playing) -> QuestionSet:
    if options.limit < 0:
        raise ConfigError(f"--limit: expected 0 or more, got {options.limit}")
    found = resolve_questions(options.questions, str(playing.env["world"]), options.split)
    return found.spread(options.limit) if options.limit else found


class _Bar:
    """A bar that counts questions while it is open."""

    def __init__(self, console: Console, name: str, total: int, *, done: int = 0) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        self._bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console)
        self._task = self._bar.add_task(name, total=total, completed=done)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def advance(self, questions: int) -> None:
        """So many more are done."""
        self._bar.advance(self._task, questions)

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


if __name__ == "__main__":
    sys.exit(main())
