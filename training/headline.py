"""The headline, seed by seed: a policy trained to search on demand against fixed plans.

``python -m training.headline`` trains the recipe once per seed, plays the test questions under every workflow with the
untrained and the trained weights, and compares what came of it with the claims. Whatever has been trained or played is
kept, so the same command goes on after an interruption.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from agents.evaluate import SEARCH_FREE, SEARCH_REQUIRED, evaluate
from agents.labels import UNSOLVED
from agents.lmm import LMMPolicy
from agents.workflows import DIRECT, FIXED_RAG, ON_DEMAND, Workflow
from mmsearch_env.env import MMSearchEnv
from mmsearch_env.errors import DataError, MMSearchError
from mmsearch_env.questions import Question
from training.checkpoint import write_text
from training.claims import UNTRAINED, Claim, Played, claims, unsolved_share
from training.compose import build_policy, env_keywords, evaluation_questions
from training.config import RunConfig
from training.config.file import read_config
from training.engine import join, leave
from training.folder import Folder, identity
from training.launching import seeds_in, train_in_processes
from training.report import outcomes_of

_UNTRAINED_PLANS: tuple[Workflow, ...] = (ON_DEMAND, DIRECT, FIXED_RAG)
_TRAINED_PLANS: tuple[Workflow, ...] = (ON_DEMAND, FIXED_RAG)
_SEED = 20_26


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command: 0 when every claim holds, 1 when one does not, 2 on a mistake that a message explains."""
    options = _parser().parse_intermixed_args(arguments)
    console = Console()
    try:
        held = _headline(options, console)
    except MMSearchError as error:
        Console(stderr=True, soft_wrap=True).print(f"{type(error).__name__}: {error}", markup=False)
        return 2
    return 0 if held else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.headline", description=__doc__)
    parser.add_argument("--recipe", default="headline", help="recipe to train (%(default)s)")
    parser.add_argument("--seeds", type=seeds_in, default=[0, 1, 2], metavar="A,B", help="of the runs (0,1,2)")
    parser.add_argument("--folder", type=Path, default=Path("runs/headline"))
    parser.add_argument("--processes", type=int, default=min(2, os.cpu_count() or 1), help="for training (%(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that replace the recipe's")
    return parser


def _headline(options: argparse.Namespace, console: Console) -> bool:
    configs = {seed: _config(options, seed) for seed in options.seeds}
    _expect_labels(evaluation_questions(configs[options.seeds[0]]))
    for seed in configs:
        console.rule(f"seed {seed}")
        train_in_processes(options.recipe, [*options.overrides, *_of_seed(options, seed)], processes=options.processes)
    join()
    try:
        played = _play(options.folder, configs, console)
    finally:
        leave()
    asked = evaluation_questions(configs[options.seeds[0]])
    novel = frozenset(question.id for question in asked if question.tags.get("entity_split") == "test_only")
    found = claims(played, test_only=novel)
    unsolved = unsolved_share(played)
    console.print(_table(found, unsolved))
    result = options.folder / "headline.json"
    write_text(
        result, json.dumps({"claims": [claim.to_json() for claim in found], "unsolved": unsolved}, indent=1) + "\n"
    )
    console.print(f"written to {result}", highlight=False)
    return all(claim.holds for claim in found)


def _expect_labels(questions: Sequence[Question]) -> None:
    """Without labels there is no search gap to measure. Raises DataError before anything is trained."""
    labels = {SEARCH_FREE, *SEARCH_REQUIRED, UNSOLVED}
    if not any(question.category in labels for question in questions):
        raise DataError(
            f"expected questions labelled for this model, got {questions[0].category!r} and the like; "
            "call `python -m agents label` first"
        )


def _config(options: argparse.Namespace, seed: int) -> RunConfig:
    return read_config(options.recipe, [*options.overrides, *_of_seed(options, seed)])


def _of_seed(options: argparse.Namespace, seed: int) -> list[str]:
    return [f"seed={seed}", f"output.folder={options.folder / f'seed-{seed}'}"]


def _play(folder: Path, configs: dict[int, RunConfig], console: Console) -> Played:
    """Every workflow with every set of weights, from file where these very weights have played it already."""
    first = next(iter(configs.values()))
    questions = evaluation_questions(first)
    policy = build_policy(first, device=join().device)
    policy.limits = replace(policy.limits, temperature=first.evaluation.temperature)
    played: Played = {}
    for name in (UNTRAINED, *(f"seed-{seed}" for seed in configs)):
        if name != UNTRAINED:
            policy.load_adapter(Folder(folder / name).adapter)
        for workflow in _UNTRAINED_PLANS if name == UNTRAINED else _TRAINED_PLANS:
            made_of = _made_of(first, policy, questions)
            path = folder / f"{name}-{workflow.name}.json"
            found = _kept(path, made_of)
            if found is None:
                with console.status(f"{name} under {workflow.name}: {len(questions)} questions"):
                    found = _played(first, policy, questions, workflow)
                write_text(path, json.dumps({"made_of": made_of, **found}) + "\n")
            played[name, workflow.name] = tuple(outcomes_of(found))
    return played


def _played(config: RunConfig, policy: LMMPolicy, questions: Sequence[Question], workflow: Workflow) -> dict[str, Any]:
    """One evaluation as plain data; an episode that was cut off counts as it stood.

    Raises:
        DataError: a question could not be played at all.
    """
    make_env = partial(MMSearchEnv, **{**env_keywords(config.env), **workflow.rules})
    found = evaluate(policy, make_env, questions, seed=_SEED, workflow=workflow)
    if found.unplayed:
        raise DataError(
            f"{workflow.name}: expected every question to be played, got {found.unplayed} that could not be; mend them"
        )
    return found.to_json()


def _made_of(config: RunConfig, policy: LMMPolicy, questions: Sequence[Question]) -> str:
    """A digest of all that an evaluation depends on: settings, weights, questions and their labels."""
    settings = {name: identity(config)[name] for name in ("policy", "env", "rollout", "evaluation")}
    state = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for question in questions:
        state.update(repr((question.id, question.text, question.answers, question.category)).encode())
    for name, parameter in sorted(policy.model.named_parameters()):
        state.update(name.encode() + parameter.detach().float().cpu().numpy().tobytes())
    return state.hexdigest()


def _kept(path: Path, made_of: str) -> dict[str, Any] | None:
    """An evaluation from file, if it is readable and of these weights and questions."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if found.get("made_of") == made_of else None


def _table(found: Sequence[Claim], unsolved: float) -> Table:
    note = f"{unsolved:.1%} of the questions are answered by no plan with the untrained weights"
    table = Table(title="headline (test questions, 95 % intervals)", caption=note)
    for column in ("claim", "bar", "measured", "holds"):
        table.add_column(column)
    for claim in found:
        table.add_row(claim.name, claim.bar, claim.measured, "[green]yes" if claim.holds else "[red]no")
    return table


if __name__ == "__main__":
    sys.exit(main())
