"""Experiment trackers beside TensorBoard, each imported only when a recipe names it. Each is a watcher of the loop.

They follow their own environment variables, such as ``WANDB_MODE`` or ``MLFLOW_TRACKING_URI``. Without any, Weights &
Biases asks for its key as it always does; MLflow and trackio write to this machine.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from agents.trajectory import Group
from training.metrics import check_names

Log = Callable[[dict[str, float], int], object]
"""Sends the numbers of an iteration."""


class Tracker:
    """Sends every finite number to one tracker."""

    def __init__(self, log: Log) -> None:
        """Args: log: of the tracker."""
        self._log = log

    def iteration(self, number: int, values: Mapping[str, float], groups: Sequence[Group]) -> None:
        """Send an iteration's numbers."""
        check_names(values)
        self._log({name: value for name, value in values.items() if math.isfinite(value)}, number)


def open_tracker(name: str, *, folder: Path, project: str, config: Mapping[str, Any]) -> Tracker:
    """The tracker of a run. A run that is resumed goes on under the same name.

    Args:
        name: of :data:`TRACKERS`.
        folder: of the run; its name is the run's.
        project: where the tracker files it.
        config: the recipe.
    """
    return Tracker(TRACKERS[name](folder.resolve(), project, config))


def _wandb(folder: Path, project: str, config: Mapping[str, Any]) -> Log:
    import wandb

    identity = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
    run = wandb.init(
        project=project, name=folder.name, config=dict(config), dir=str(folder), id=identity, resume="allow"
    )
    return lambda values, step: run.log(values, step=step)


def _mlflow(folder: Path, project: str, config: Mapping[str, Any]) -> Log:
    import mlflow

    if "MLFLOW_TRACKING_URI" not in os.environ:
        mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = mlflow.set_experiment(project)
    client = mlflow.MlflowClient()
    earlier = client.search_runs([experiment.experiment_id], filter_string=f"tags.folder = '{folder}'")
    if earlier:
        (run, *_) = earlier
    else:
        run = client.create_run(experiment.experiment_id, tags={"folder": str(folder)}, run_name=folder.name)
        for name, value in _flat(config):
            client.log_param(run.info.run_id, name, value)

    def log(values: dict[str, float], step: int) -> None:
        entities = [mlflow.entities.Metric(name, value, 0, step) for name, value in values.items()]
        client.log_batch(run.info.run_id, metrics=entities)

    return log


def _trackio(folder: Path, project: str, config: Mapping[str, Any]) -> Log:
    import trackio

    trackio.init(project=project, name=folder.name, config=dict(config), resume="allow", embed=False)
    return lambda values, step: trackio.log(values, step=step)


def _flat(tree: Mapping[str, Any], path: str = "") -> list[tuple[str, str]]:
    """Every value of a recipe by its dotted name."""
    found = []
    for name, value in tree.items():
        found += _flat(value, f"{path}{name}.") if isinstance(value, Mapping) else [(f"{path}{name}", str(value)[:500])]
    return found


TRACKERS: Mapping[str, Callable[[Path, str, Mapping[str, Any]], Log]] = {
    "wandb": _wandb,
    "mlflow": _mlflow,
    "trackio": _trackio,
}
