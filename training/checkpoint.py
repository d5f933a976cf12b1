"""Checkpoints: what a run needs to go on as if it had never stopped, written so that no moment can spoil it.

    checkpoints/000010/adapter/              the adapter, in the policy's own format (PEFT for a LoRA)
    checkpoints/000010/optimiser.safetensors AdamW's moments, whole, by parameter name
    checkpoints/000010/state.json            counters and what the run was made of

A checkpoint is written beside its place, synchronised to disk and renamed: either it is there whole or not at all. The
run goes on meanwhile.
There are no random-number states in it because none are carried between iterations (:mod:`training.order`).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mmsearch_env.errors import DataError
from training.engine import OptimiserState

FORMAT = 1
"""Version of the layout above."""
_WRITING = ".writing-"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint on disk.

    Attributes:
        folder: where it is.
        state: the contents of ``state.json``.
    """

    folder: Path
    state: Mapping[str, Any]

    @property
    def adapter(self) -> Path:
        """Folder of the adapter."""
        return self.folder / "adapter"

    def optimiser(self) -> OptimiserState:
        """The optimiser's state. Raises DataError."""
        path = self.folder / "optimiser.safetensors"
        try:
            return OptimiserState(int(self.state["optimiser_steps"]), load_file(path))
        except (OSError, SafetensorError) as error:
            raise DataError(
                f"{path}: expected an optimiser state, got {error}; delete the folder to resume earlier"
            ) from error


class Writer:
    """Writes checkpoints under one folder; pushing them to the disk happens while training goes on."""

    def __init__(self, folder: Path, *, keep: int) -> None:
        """Args: folder: where to; keep: how many stay, the newest."""
        self._folder = folder
        self._keep = keep
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._last: Future[None] | None = None

    def write(
        self,
        iteration: int,
        *,
        save_adapter: Callable[[Path], None],
        optimiser: OptimiserState,
        state: Mapping[str, Any],
    ) -> None:
        """Write checkpoint ``iteration``. It holds what was given, whatever happens to it afterwards.

        Raises:
            DataError: the disk is full or not writable, for this one or the one before; earlier ones are untouched.
        """
        self.finish()
        target = self._folder / f"{iteration:06d}"
        if target.is_dir():
            return
        part = self._folder / f"{_WRITING}{iteration:06d}"
        with _explained(target, part):
            self._folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(part, ignore_errors=True)
            (part / "adapter").mkdir(parents=True)
            save_adapter(part / "adapter")
            save_file(
                {name: tensor.contiguous() for name, tensor in optimiser.tensors.items()},
                part / "optimiser.safetensors",
            )
            content = {"format": FORMAT, "iteration": iteration, "optimiser_steps": optimiser.steps, **state}
            (part / "state.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
        self._last = self._thread.submit(self._complete, part, target)

    def finish(self) -> None:
        """Wait until everything is on the disk. Raises DataError."""
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def close(self) -> None:
        """The same, and no more will be written. Raises DataError."""
        try:
            self.finish()
        finally:
            self._thread.shutdown()

    def _complete(self, part: Path, target: Path) -> None:
        with _explained(target, part):
            _synchronise(part)
            part.replace(target)
            _synchronise_entry(self._folder)
        for old in _folders(self._folder)[: -self._keep]:
            shutil.rmtree(old, ignore_errors=True)


def write(
    folder: Path,
    *,
    iteration: int,
    save_adapter: Callable[[Path], None],
    optimiser: OptimiserState,
    state: Mapping[str, Any],
    keep: int,
) -> Path:
    """Write one checkpoint and wait until it is on the disk; see :class:`Writer`."""
    with closing(Writer(folder, keep=keep)) as writer:
        writer.write(iteration, save_adapter=save_adapter, optimiser=optimiser, state=state)
    return folder / f"{iteration:06d}"


@contextmanager
def _explained(target: Path, part: Path) -> Iterator[None]:
    """What goes wrong with a disk, in words; nothing half written stays."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        shutil.rmtree(part, ignore_errors=True)
        raise DataError(f"{target}: expected to write a checkpoint, got {error}; make room and resume") from error


def latest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint under ``folder``; None if there is none.

    Raises:
        DataError: its ``state.json`` cannot be read or was written by another version.
    """
    found = _folders(folder)
    if not found:
        return None
    path = found[-1] / "state.json"
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: expected a checkpoint's state, got {error}; delete {found[-1]} to resume earlier"
        ) from error
    if state.get("format") != FORMAT:
        raise DataError(
            f"{path}: expected format {FORMAT}, got {state.get('format')!r}; resume with the version that wrote it"
        )
    return Checkpoint(found[-1], state)


def write_folder(folder: Path, save: Callable[[Path], None]) -> None:
    """Write a folder, an adapter's or a model's, as a whole, replacing an older one. Raises DataError."""
    part, old = (folder.with_name(f"{_WRITING}{folder.name}{suffix}") for suffix in ("", ".old"))
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        save(part)
        _synchronise(part)
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.replace(old)
        part.replace(folder)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(part, ignore_errors=True)
        raise DataError(f"{folder}: expected to write the folder, got {error}; make room and resume") from error


def write_text(path: Path, text: str) -> None:
    """Replace a file's content in one step. Raises DataError."""
    part = path.with_name(f"{_WRITING}{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        _synchronise_entry(part)
        part.replace(path)
    except OSError as error:
        raise DataError(
            f"{path}: expected to write the file, got {error}; make room or choose another folder"
        ) from error


def _folders(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and path.name.isdigit())


def _synchronise(folder: Path) -> None:
    """Push a folder's files, and the folders themselves, to the disk."""
    for path in sorted(folder.rglob("*"), reverse=True):
        _synchronise_entry(path)
    _synchronise_entry(folder)


def _synchronise_entry(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
