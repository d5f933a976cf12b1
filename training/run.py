"""A whole run: build or resume, evaluate, train, evaluate again, report."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from agents.evaluate import Evaluation
from agents.recording import write_recording
from agents.trajectory import Trajectory
from mmsearch_env.errors import ConfigError
from mmsearch_env.questions import Question
from training import checkpoint, curves, report
from training.acting import Actor, one_for_all
from training.algorithms import Algorithm
from training.checkpoint import Checkpoint
from training.config import RunConfig
from training.config.file import to_mapping
from training.engine import AdamSettings, Engine, Place
from training.folder import Folder, identity, resumable
from training.interrupt import StopRequest
from training.learn import Learner, TokenBudget
from training.order import fingerprint
from training.progress import RunProgress
from training.records import MetricsFile, TensorBoard, Transcripts, read_metrics
from training.task import Task, TrainablePolicy
from training.trackers import open_tracker
from training.train import Counters, Run, Watcher, train

_log = logging.getLogger(__name__)

_NOTED = "evaluation.json"


@dataclass(frozen=True, slots=True)
class Parts:
    """What a run is made of, before it is put together.

    Attributes:
        policy: what learns.
        task: what it plays.
        algorithm: how it learns.
        adam: the optimiser's settings.
        test_questions: of the table before and after training.
        questions_during: of evaluations during training.
    """

    policy: TrainablePolicy
    task: Task
    algorithm: Algorithm
    adam: AdamSettings
    test_questions: Sequence[Question]
    questions_during: Sequence[Question]


def execute(config: RunConfig, parts: Parts, place: Place, *, stop: StopRequest, console: Console) -> Counters:
    """Train to the end of the recipe, from the newest checkpoint if there is one.

    Every rank calls it; files are written and words are said by rank 0.

    Raises:
        ConfigError: the run's folder holds a run of another recipe or of other questions.
        DataError: something cannot be read or written.
    """
    folder = Folder(Path(config.output.folder))
    found = _checkpoint(config, parts, place)
    engine, counters = _started(config, parts, place, found)
    if place.rank == 0 and counters.iteration < config.iterations:
        folder.after.unlink(missing_ok=True)
        shutil.rmtree(folder.adapter, ignore_errors=True)  # of an earlier end, where the run is prolonged
    if found is None:
        _evaluate(parts, engine, folder.before, "before training", console)
    else:
        console.print(f"resuming after iteration {counters.iteration} of {config.iterations}")
    progress = RunProgress(console, total=config.iterations, done=counters.iteration)
    actor = Actor(parts.task, config, engine, stop)
    writer = checkpoint.Writer(folder.checkpoints, keep=config.output.keep)
    run = Run(
        config=config,
        actor=actor,
        learner=Learner(
            policy=parts.policy,
            engine=engine,
            algorithm=parts.algorithm,
            temperature=config.rollout.temperature,
            budget=TokenBudget(config.engine.micro_batch_tokens),
        ),
        watchers=[*_writers(config, parts, folder, counters), progress] if place.rank == 0 else [],
        save=lambda at: _save(config, parts, engine, writer, at),
        evaluate=lambda at: _judged(parts, engine, folder, at, console),
        set_aside=lambda at, episodes: _set_aside(folder, place, at, episodes),
        stop=stop,
        phase=progress.phase,
    )
    with progress.shown(), closing(actor), closing(writer):
        counters = train(run, counters)
    if counters.iteration < config.iterations:
        console.print(f"stopped after iteration {counters.iteration} and saved; the same command goes on from there")
        return counters
    with engine.gathered("trained"):
        if place.rank == 0:
            checkpoint.write_folder(folder.adapter, parts.policy.save_adapter)
    _evaluate(parts, engine, folder.after, "after training", console)
    engine.wait_for_all()
    return counters


def is_finished(config: RunConfig) -> bool:
    """Whether the output folder holds this recipe, trained to its end. Raises ConfigError for another recipe."""
    found, folder = resumable(config), Folder(Path(config.output.folder))
    return (
        found is not None and int(found.state["counters"]["iteration"]) >= config.iterations and folder.after.exists()
    )


def present(config: RunConfig, console: Console) -> None:
    """Show the table of a finished run, draw its curves, and say where everything lies and what comes next.

    Raises:
        DataError: a file of the run cannot be read.
    """
    folder = Folder(Path(config.output.folder))
    before, after = report.read_outcomes(folder.before), report.read_outcomes(folder.after)
    console.print(report.table(report.compared(before, after)))
    curves.draw(
        read_metrics(folder.metrics),
        folder.plot,
        ends=report.ends(before, after, iterations=config.iterations),
        title=f"{config.policy.model} on {config.env.world}",
    )
    for label, path in (
        ("adapter", folder.adapter),
        ("best", folder.best),
        ("curves", folder.plot),
        ("metrics", folder.metrics),
        ("TensorBoard", folder.tensorboard),
        ("transcripts", folder.transcripts),
        ("evaluations", folder.after),
    ):
        if path.exists():
            console.print(f"  {label:<12} {path}", highlight=False, soft_wrap=True)
    python = os.path.relpath(sys.executable) if Path(sys.executable).is_relative_to(Path.cwd()) else sys.executable
    console.print(
        f"\nnext  {python} -m tensorboard.main --logdir {folder.tensorboard}\n"
        f"      {python} -m agents evaluate --run {folder.root} --workflow on_demand --workflow fixed_rag --limit 200",
        highlight=False,
        soft_wrap=True,
    )


def _checkpoint(config: RunConfig, parts: Parts, place: Place) -> Checkpoint | None:
    """The checkpoint to go on from; a fresh run's recipe is written down."""
    found = resumable(config)
    if found is None:
        if place.rank == 0:
            folder = Folder(Path(config.output.folder))
            checkpoint.write_text(folder.recipe, json.dumps(to_mapping(config), indent=1))
        return None
    expected = fingerprint(parts.task.questions)
    if found.state["questions"] != expected:
        raise ConfigError(
            f"{found.folder}: expected the questions this run was begun with ({found.state['questions']}), got others "
            f"({expected}); restore them, or start anew with --resume never (the old run is kept)"
        )
    return found


def _started(config: RunConfig, parts: Parts, place: Place, found: Checkpoint | None) -> tuple[Engine, Counters]:
    """The engine and the counters, from a checkpoint or fresh."""
    if found is not None:
        parts.policy.load_adapter(found.adapter)
    engine = Engine(
        parts.policy.scorer,
        place=place,
        adam=parts.adam,
        zero_stage=config.engine.zero_stage,
        offload=config.engine.offload,
    )
    if found is None:
        return engine, Counters()
    engine.load_optimiser_state(found.optimiser())
    return engine, Counters(**found.state["counters"])


def _save(config: RunConfig, parts: Parts, engine: Engine, writer: checkpoint.Writer, counters: Counters) -> None:
    """A checkpoint: every rank gives its part of the optimiser's state, rank 0 writes."""
    state = engine.optimiser_state()
    with engine.gathered("trained"):
        if engine.place.rank == 0:
            writer.write(
                counters.iteration,
                save_adapter=parts.policy.save_adapter,
                optimiser=state,
                state={
                    "counters": asdict(counters),
                    "recipe": identity(config),
                    "questions": fingerprint(parts.task.questions),
                },
            )
    engine.wait_for_all()


def _writers(config: RunConfig, parts: Parts, folder: Folder, counters: Counters) -> list[Watcher]:
    return [
        MetricsFile(folder.metrics, after=counters.iteration),
        TensorBoard(folder.tensorboard, after=counters.iteration),
        Transcripts(folder.transcripts, every=config.output.transcripts_every, render=parts.task.transcript),
        *_trackers(config),
    ]


def _trackers(config: RunConfig) -> list[Watcher]:
    output = config.output
    if output.tracker == "none":
        return []
    return [open_tracker(output.tracker, folder=Path(output.folder), project=output.project, config=to_mapping(config))]


def _set_aside(folder: Folder, place: Place, counters: Counters, episodes: Sequence[Trajectory]) -> None:
    """Keep the episodes of an update that was skipped, for whoever wants to know why; the run goes on."""
    target = folder.skipped / f"{counters.iteration + 1:06d}-rank-{place.rank}"
    write_recording(target, episodes)
    _log.warning("an update was skipped: its gradient is not finite; its episodes are in %s", target)


def _judged(parts: Parts, engine: Engine, folder: Folder, counters: Counters, console: Console) -> dict[str, float]:
    """An evaluation during training; the adapter is kept if none did better before."""
    values = report.evaluation_metrics(_evaluated(parts.task, engine, parts.questions_during))
    noted = {"iteration": counters.iteration, **values}
    is_best = engine.place.rank == 0 and values["evaluation/reward"] > _best_before(folder, counters)
    with engine.gathered("trained"):
        if is_best:
            checkpoint.write_folder(folder.best, lambda inside: _write_best(parts, inside, noted))
    console.print(
        f"evaluation after iteration {counters.iteration}  reward {values['evaluation/reward']:.3f}  "
        f"accuracy {values['evaluation/accuracy']:.0%}  search {values['evaluation/search_ratio']:.0%}"
        f"{'  the best so far' if is_best else ''}",
        highlight=False,
        soft_wrap=True,
    )
    engine.wait_for_all()
    return values


def _write_best(parts: Parts, folder: Path, noted: Mapping[str, float]) -> None:
    parts.policy.save_adapter(folder)
    checkpoint.write_text(folder / _NOTED, json.dumps(noted, indent=1))


def _best_before(folder: Folder, counters: Counters) -> float:
    """The best reward of an evaluation before this iteration; one of a later iteration, not yet redone, is void."""
    try:
        noted = json.loads((folder.best / _NOTED).read_text())
        return float(noted["evaluation/reward"]) if noted["iteration"] < counters.iteration else -math.inf
    except (OSError, ValueError, KeyError):  # none yet, or one that cannot be compared with
        return -math.inf


def _evaluate(parts: Parts, engine: Engine, path: Path, when: str, console: Console) -> None:
    """Play the test questions and keep what came of them."""
    with console.status(f"evaluating {when} on {len(parts.test_questions)} questions"):
        evaluation = _evaluated(parts.task, engine, parts.test_questions)
    overall = evaluation.overall
    console.print(
        f"{when:<15}  reward {overall.reward.mean:.3f}  accuracy {overall.accuracy.mean:.0%}  "
        f"search {overall.search_ratio.mean:.0%}",
        highlight=False,
    )
    if engine.place.rank == 0:
        checkpoint.write_text(path, json.dumps(evaluation.to_json(), indent=1))


def _evaluated(task: Task, engine: Engine, questions: Sequence[Question]) -> Evaluation:
    """The questions shared out over the ranks, the whole result on every rank."""
    place = engine.place
    with one_for_all(engine), engine.gathered():
        mine = task.evaluate(questions[place.rank :: place.world_size])
    return report.merged([json.loads(text) for text in engine.texts(json.dumps(mine.to_json()))])
