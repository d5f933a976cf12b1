"""Recording the demonstrations: most become lessons, a few are held out for the probes."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

from agents.renderer import ChatRenderer
from agents.trajectory import Trajectory
from mmsearch_env.env import MMSearchEnv
from mmsearch_env.worlds import load_world
from training.tiny_lmm.demonstrations import Teacher, demonstrations

_ROUNDS = ((3, 0.85), (2, 0.15))
"""Round limits of the demonstrations, and their shares."""
_RESERVED = 240
"""Questions whose demonstrations are held out; about a third of them have a part with reading."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """Demonstrations.

    Attributes:
        lessons: to learn from; each process has its own.
        reserved: held out, the same ones for every process.
    """

    lessons: list[Trajectory]
    reserved: list[Trajectory]


def record(
    world: str,
    renderer: ChatRenderer,
    teacher: Teacher,
    *,
    count: int,
    seed: int,
    stream: int,
    on_recorded: Callable[[int], None],
) -> Recorded:
    """Play the invented world: what is asked about familiar entities, and others at random.

    Args:
        world: specification of the invented world.
        renderer: of the model that learns.
        teacher: who plays.
        count: how many lessons.
        seed: chooses what is held out.
        stream: of the coin and the order of this process.
        on_recorded: told the number of lessons so far.
    """
    questions = list(load_world(world).questions("all"))
    random.Random(seed).shuffle(questions)
    held_out, others = questions[:_RESERVED], questions[_RESERVED:]
    rng = random.Random(stream)
    rng.shuffle(others)
    others.sort(key=lambda question: question.tags["entity"] not in teacher.familiar)
    asked = others[:count]
    rng.shuffle(asked)
    remaining = iter(asked)
    lessons: list[Trajectory] = []
    for rounds, share in _ROUNDS:
        played = demonstrations(_env(world, rounds), renderer, teacher, remaining, seed=stream)
        lessons += islice(played, round(share * count))
        on_recorded(len(lessons))
    rng.shuffle(lessons)
    reserved = demonstrations(_env(world, _ROUNDS[0][0]), renderer, teacher, held_out, seed=seed)
    return Recorded(lessons, list(reserved))


def _env(world: str, rounds: int) -> MMSearchEnv:
    return MMSearchEnv(world=world, split="all", prompts="brief", max_rounds=rounds, image_top_k=3, text_top_k=3)
