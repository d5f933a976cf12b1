"""Labels measured by several processes, each with the model in its own memory, so that CPU cores share the work.

What an episode draws depends on the seed and its question alone, so the labels are those of one process.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import torch

from agents.labels import Labels, measure_labels
from agents.lmm import LMMPolicy
from agents.playing import Playing
from mmsearch_env.questions import Question


def measured_labels(
    playing: Playing, parts: Sequence[Sequence[Question]], *, seed: int, processes: int
) -> Iterator[Labels]:
    """The labels of each part, in order, each given as soon as it is measured.

    Args:
        playing: whose labels they are, and how it plays.
        parts: what to label.
        seed: of all episodes.
        processes: 1 measures here; more are started, with one thread each.
    """
    playing = replace(playing, temperature=1.0)
    if not parts:
        return
    if processes == 1:
        policy = playing.policy()
        for part in parts:
            yield measure_labels(policy, playing.make_env, part, seed=seed)
        return
    # Started afresh, not forked: a fork of a process whose libraries have threads may hang.
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _begin, (playing,)) as pool:
        waiting = [pool.submit(_measured, part, seed) for part in parts]
        try:
            for future in waiting:
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


_started: list[tuple[LMMPolicy, Playing]] = []
"""In a started process: its model and how it plays, made once."""


def _begin(playing: Playing) -> None:
    torch.set_num_threads(1)
    _started.append((playing.policy(), playing))


def _measured(questions: Sequence[Question], seed: int) -> Labels:
    ((policy, playing),) = _started
    return measure_labels(policy, playing.make_env, questions, seed=seed)
