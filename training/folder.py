"""The folder of a run: what lies where, and whether what lies there is this run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.labels import weights_digest
from agents.playing import model_folder
from mmsearch_env.errors import ConfigError
from training import checkpoint
from training.checkpoint import Checkpoint
from training.config import RunConfig
from training.config.file import to_mapping

_MUST_AGREE = ("policy", "env", "rollout", "algorithm", "critic", "optimiser", "seed")
"""Sections that may not change between the parts of one run; iterations, engine and output may."""
_EVALUATED = ("file", "split", "questions", "temperature")
"""Settings of the evaluations before and after, which are compared and so may not change either."""


@dataclass(frozen=True, slots=True)
class Folder:
    """The files of a run."""

    root: Path

    @property
    def recipe(self) -> Path:
        """The configuration the run was begun with."""
        return self.root / "recipe.json"

    @property
    def checkpoints(self) -> Path:
        """What resuming needs."""
        return self.root / "checkpoints"

    @property
    def adapter(self) -> Path:
        """The trained adapter."""
        return self.root / "adapter"

    @property
    def best(self) -> Path:
        """The adapter that did best in the evaluations during training, and how well it did."""
        return self.root / "best"

    @property
    def skipped(self) -> Path:
        """Recordings of episodes whose update was skipped because its gradient was not finite."""
        return self.root / "skipped"

    @property
    def metrics(self) -> Path:
        """One line of JSON per iteration."""
        return self.root / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """Event files."""
        return self.root / "tensorboard"

    @property
    def transcripts(self) -> Path:
        """Episodes as text."""
        return self.root / "transcripts"

    @property
    def plot(self) -> Path:
        """Picture of the curves."""
        return self.root / "curves.png"

    @property
    def before(self) -> Path:
        """The evaluation before training."""
        return self.root / "before.json"

    @property
    def after(self) -> Path:
        """The evaluation after training."""
        return self.root / "after.json"

    def set_aside(self) -> Path | None:
        """Move what is there out of the way; where it went, or None if there was nothing."""
        if not self.root.exists():
            return None
        number = 1
        while (target := self.root.with_name(f"{self.root.name}.old-{number}")).exists():
            number += 1
        return self.root.rename(target)


def resumable(config: RunConfig) -> Checkpoint | None:
    """The newest checkpoint of this very run; None if there is none.

    Raises:
        ConfigError: the folder's run was made by another recipe.
        DataError: the checkpoint cannot be read.
    """
    folder = Folder(Path(config.output.folder))
    found = checkpoint.latest(folder.checkpoints)
    if found is None:
        return None
    differences = _differences("", found.state["recipe"], identity(config))
    if differences:
        raise ConfigError(
            f"{folder.root}: expected the recipe this run was begun with, got {'; '.join(differences)}. Choose another "
            "output.folder, or start anew with --resume never (the old run is kept)"
        )
    return found


def identity(config: RunConfig) -> dict[str, Any]:
    """What makes this run this run, as it comes back from JSON."""
    tree = to_mapping(config)
    kept = {name: tree[name] for name in _MUST_AGREE}
    kept["evaluation"] = {name: tree["evaluation"][name] for name in _EVALUATED}
    model = model_folder(config.policy.model)
    kept["weights"] = weights_digest(model) if model.is_dir() else ""
    plain: dict[str, Any] = json.loads(json.dumps(kept))
    return plain


def _differences(path: str, old: Any, new: Any) -> list[str]:
    """``"optimiser.learning_rate = 2e-05 instead of 1e-05"`` for every leaf that changed."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return [
            text
            for key in dict.fromkeys((*old, *new))
            for text in _differences(f"{path}.{key}" if path else key, old.get(key), new.get(key))
        ]
    return [] if old == new else [f"{path} = {new!r} instead of {old!r}"]
