"""Which questions an iteration plays, and the seeds of everything random: pure functions of the run's seed.

Nothing random is carried from one iteration to the next. That is why a checkpoint holds no generator states: resuming
at iteration n draws the numbers the unbroken run draws at iteration n, on any number of processes.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

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


def positions_of(iteration: int, *, questions: int, per_iteration: int, seed: int) -> list[int]:
    """Positions of the questions iteration ``iteration`` plays.

    The questions are gone through again and again, each pass in a new order; an iteration may span two passes.

    Args:
        iteration: counted from 0.
        questions: how many there are.
        per_iteration: how many an iteration plays.
        seed: of the run.
    """
    start = iteration * per_iteration
    passes = range(start // questions, (start + per_iteration - 1) // questions + 1)
    order = [
        position
        for number in passes
        for position in np.random.default_rng(seed_of(seed, 1, number)).permutation(questions).tolist()
    ]
    offset = start - passes.start * questions
    return order[offset : offset + per_iteration]


def fingerprint(questions: Sequence[Question]) -> str:
    """Short digest of ids and their order, by which a checkpoint knows its questions again."""
    return hashlib.sha256("\n".join(question.id for question in questions).encode()).hexdigest()[:16]
