"""Trajectories as JSON: kept in a folder, or handed from one process to another.

A recording is a folder::

    trajectories.jsonl      one trajectory a line, pictures by their digest
    pictures/DIGEST.png     each picture once

It holds tokens and not only text, so what is learnt from it is exactly what was seen and said.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from agents.trajectory import Completion, FinishReason, Trajectory, Turn
from mmsearch_env.errors import DataError, ImageError
from mmsearch_env.images import Image

_LINES, _PICTURES = "trajectories.jsonl", "pictures"


def to_json(trajectory: Trajectory) -> dict[str, Any]:
    """A trajectory as plain values; its pictures by their digest."""
    plain = {field.name: getattr(trajectory, field.name) for field in dataclasses.fields(trajectory)}
    plain["turns"] = [_turn_to_json(turn) for turn in trajectory.turns]
    plain["reward_terms"], plain["counts"] = dict(trajectory.reward_terms), dict(trajectory.counts)
    return plain


def from_json(plain: Mapping[str, Any], pictures: Mapping[str, Image]) -> Trajectory:
    """What :func:`to_json` was given. Raises DataError where something is missing or of another kind."""
    try:
        turns = tuple(_turn_from_json(turn, pictures) for turn in plain["turns"])
        return Trajectory(**{**plain, "turns": turns})
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"expected a recorded trajectory, got {type(error).__name__}: {error}") from error


def write_recording(folder: Path, trajectories: Iterable[Trajectory]) -> int:
    """Add trajectories to a recording; how many were added.

    Raises:
        DataError: the folder cannot be written.
    """
    count = 0
    try:
        (folder / _PICTURES).mkdir(parents=True, exist_ok=True)
        _drop_torn_line(folder / _LINES)
        with (folder / _LINES).open("a", encoding="utf-8") as lines:
            for trajectory in trajectories:
                for image in trajectory.images:
                    _keep(folder, image)
                lines.write(json.dumps(to_json(trajectory)) + "\n")
                count += 1
    except OSError as error:
        raise DataError(
            f"{folder}: expected to write a recording, got {error}; free space or choose another"
        ) from error
    return count


def read_recording(folder: Path) -> list[Trajectory]:
    """The trajectories of a recording, in the order in which they were added.

    Raises:
        DataError: with file and line, where something is missing or damaged.
    """
    path = folder / _LINES
    try:
        whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")  # what a kill cut off is not a line
        lines = whole.splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected a recording, got {error}") from error
    pictures: dict[str, Image] = {}
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            plain = json.loads(line)
            for digest in _digests(plain):
                if digest not in pictures:
                    pictures[digest] = _kept(folder, digest)
            found.append(from_json(plain, pictures))
        except (ValueError, TypeError, AttributeError, DataError) as error:
            raise DataError(f"{path}, line {number}: {error}") from error
    return found


def _drop_torn_line(path: Path) -> None:
    """Take away what a killed process wrote of its last line."""
    if not path.exists():
        return
    text = path.read_bytes()
    if text and not text.endswith(b"\n"):
        path.write_bytes(text[: text.rfind(b"\n") + 1])


def _keep(folder: Path, image: Image) -> None:
    target = folder / _PICTURES / f"{image.digest}.png"
    if not target.exists():
        part = target.with_suffix(".part")
        part.write_bytes(image.to_png())
        part.replace(target)


def _kept(folder: Path, digest: str) -> Image:
    if not digest.isalnum():
        raise DataError(f"expected the digest of a picture, got {digest!r}")
    path = folder / _PICTURES / f"{digest}.png"
    try:
        image = Image.from_file(path)
    except (ImageError, DataError) as error:
        raise DataError(f"expected a picture, got {error}") from error
    if image.digest != digest:
        raise DataError(f"{path}: expected the picture of that digest, got another")
    return image


def _digests(plain: Mapping[str, Any]) -> Sequence[str]:
    return [digest for turn in plain.get("turns", ()) for digest in turn.get("images", ())]


def _turn_to_json(turn: Turn) -> dict[str, Any]:
    plain = {field.name: getattr(turn, field.name) for field in dataclasses.fields(turn)}
    plain["images"] = [image.digest for image in turn.images]
    plain["completion"] = dataclasses.asdict(turn.completion)
    return plain


def _turn_from_json(plain: Mapping[str, Any], pictures: Mapping[str, Image]) -> Turn:
    said = plain["completion"]
    completion = Completion(
        text=said["text"],
        token_ids=tuple(said["token_ids"]),
        logprobs=tuple(said["logprobs"]),
        finish_reason=FinishReason(said["finish_reason"]),
        forced_ids=tuple(said["forced_ids"]),
    )
    images = tuple(pictures[digest] for digest in plain["images"])
    return Turn(**{**plain, "prompt_ids": tuple(plain["prompt_ids"]), "images": images, "completion": completion})
