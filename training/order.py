"""Which questions an iteration plays, and the seeds of everything random: pure functions of the run's seed.

Nothing random is carried from one iteration to the next. That is why a checkpoint holds no generator states: resuming
at iteration n draws the numbers the unbroken run draws at iteration n, on any number of processes.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from mmsearch_env.questions import Question


def seed_of(*parts: int) -> int:
    """A 31-bit seed from whole numbers; any change of a part gives an unrelated one."""
    digest = hashlib.sha256(",".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def seed_generators(*parts: int) -> None:
    """Seed the global generators of Python, NumPy and torch, for what draws from them (dropout, user code)."""
    seed = seed_of(*parts)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def one_pass(questions: Sequence[Question], repeats: Mapping[str, int]) -> list[int]:
    """Positions of the questions that one pass plays, each as often as its category says; once if it says nothing."""
    return [position for position, question in enumerate(questions) for _ in range(repeats.get(question.category, 1))]


def positions_of(iteration: int, *, each_pass: Sequence[int], per_iteration: int, seed: int) -> list[int]:
    """Positions of the questions iteration ``iteration`` plays.

    They are gone through again and again, each pass in a new order; an iteration may span two passes.

    Args:
        iteration: counted from 0.
        each_pass: positions of the questions that a pass plays, in any order.
        per_iteration: how many an iteration plays.
        seed: of the run.
    """
    start, length = iteration * per_iteration, len(each_pass)
    passes = range(start // length, (start + per_iteration - 1) // length + 1)
    order = [
        each_pass[place]
        for number in passes
        for place in np.random.default_rng(seed_of(seed, 1, number)).permutation(length).tolist()
    ]
    offset = start - passes.start * length
    return order[offset : offset + per_iteration]


def spare_positions(iteration: int, draw: int, *, each_pass: Sequence[int], seed: int) -> list[int]:
    """Positions of questions for the places from which nothing is learnt, in order of preference.

    Args:
        iteration: counted from 0.
        draw: how often places were filled in this iteration before.
        each_pass: positions of the questions that a pass plays.
        seed: of the run.
    """
    order = np.random.default_rng(seed_of(seed, 4, iteration, draw)).permutation(len(each_pass))
    return [each_pass[place] for place in order.tolist()]


def fingerprint(questions: Sequence[Question]) -> str:
    """Short digest of ids and their order, by which a checkpoint knows its questions again."""
    return hashlib.sha256("\n".join(question.id for question in questions).encode()).hexdigest()[:16]
