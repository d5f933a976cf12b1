"""Groups move between ranks, so that none waits long for another that has more to learn."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from agents.recording import from_json, to_json
from mmsearch_env.images import Image
from training.batch import CriticTargets, Example, tokens_run
from training.engine import Engine

_TOLERANCE = 0.05
"""Ranks whose work differs from the mean by less than this share are left as they are."""


@dataclass(frozen=True, slots=True)
class Move:
    """A group that changes ranks.

    Attributes:
        group: its number.
        source: the rank that played it.
        target: the rank that learns from it.
    """

    group: int
    source: int
    target: int


def balanced(groups: Mapping[int, Sequence[Example]], engine: Engine) -> dict[int, Sequence[Example]]:
    """The groups that this rank learns from; every rank calls it.

    Args:
        groups: place in the iteration -> its examples, as this rank played them.
        engine: knows the other ranks.
    """
    found = dict(groups)
    if engine.place.world_size == 1:
        return found
    own = {place: tokens_run(examples, packed=True) for place, examples in groups.items()}
    costs = [{int(place): size for place, size in json.loads(text).items()} for text in engine.texts(json.dumps(own))]
    for move in moves(costs):
        text = packed(found.pop(move.group)) if engine.place.rank == move.source else ""
        text = engine.passed(text, source=move.source, target=move.target)
        if engine.place.rank == move.target:
            found[move.group] = unpacked(text)
    return found


def moves(costs: Sequence[Mapping[int, int]]) -> list[Move]:
    """What to move so that the largest rank has least to do, one group at a time; the same on every rank.

    Args:
        costs: of each rank's groups, by their numbers.
    """
    held = [dict(one) for one in costs]
    mean = sum(sum(one.values()) for one in held) / len(held)
    found: list[Move] = []
    while True:
        loads = [sum(one.values()) for one in held]
        source, target = loads.index(max(loads)), loads.index(min(loads))
        gap = loads[source] - loads[target]
        # Only a group that costs less than the difference makes the larger of the two smaller.
        fitting = {group: size for group, size in held[source].items() if 0 < size < gap}
        if not fitting or loads[source] <= (1 + _TOLERANCE) * mean:
            return found
        group = min(fitting, key=lambda one: (abs(fitting[one] - gap / 2), one))
        held[target][group] = held[source].pop(group)
        found.append(Move(group, source, target))


def packed(examples: Sequence[Example]) -> str:
    """Examples as text, their pictures with them."""
    pictures = {image.digest: image for example in examples for image in example.trajectory.images}
    return json.dumps(
        {
            "pictures": {digest: base64.b64encode(image.to_png()).decode() for digest, image in pictures.items()},
            "examples": [_to_json(example) for example in examples],
        }
    )


def unpacked(text: str) -> list[Example]:
    """What :func:`packed` was given."""
    plain = json.loads(text)
    pictures = {digest: Image.from_bytes(base64.b64decode(data)) for digest, data in plain["pictures"].items()}
    return [_from_json(example, pictures) for example in plain["examples"]]


def _to_json(example: Example) -> dict[str, Any]:
    critic = example.critic
    return {
        "trajectory": to_json(example.trajectory),
        "advantages": example.advantages.tolist(),
        "critic": None if critic is None else [critic.old_values.tolist(), critic.returns.tolist()],
        "end": example.end,
    }


def _from_json(plain: Mapping[str, Any], pictures: Mapping[str, Image]) -> Example:
    critic = plain["critic"]
    return Example(
        from_json(plain["trajectory"], pictures),
        np.array(plain["advantages"], dtype=np.float32),
        None if critic is None else CriticTargets(*(np.array(one, dtype=np.float32) for one in critic)),
        plain["end"],
    )
