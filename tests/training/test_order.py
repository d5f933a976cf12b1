from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import torch
from bandit import guess_questions

from training.order import fingerprint, one_pass, positions_of, seed_generators, seed_of


def test_a_pass_plays_every_question_once() -> None:
    played = [position for n in range(5) for position in positions_of(n, each_pass=range(10), per_iteration=2, seed=0)]
    assert sorted(played) == list(range(10))


def test_passes_come_in_different_orders_and_an_iteration_may_span_two() -> None:
    played = [position for n in range(6) for position in positions_of(n, each_pass=range(8), per_iteration=4, seed=0)]
    assert played[:8] != played[8:16]
    spanning = [position for n in range(8) for position in positions_of(n, each_pass=range(8), per_iteration=3, seed=0)]
    assert played == spanning
    assert sorted(spanning[8:16]) == list(range(8))


def test_a_category_may_come_more_often() -> None:
    questions = [
        replace(question, category="hard" if n == 2 else "easy") for n, question in enumerate(guess_questions(4))
    ]
    each_pass = one_pass(questions, {"hard": 3})
    assert each_pass == [0, 1, 2, 2, 2, 3]
    played = [position for n in range(4) for position in positions_of(n, each_pass=each_pass, per_iteration=3, seed=0)]
    assert sorted(played[:6]) == sorted(played[6:]) == each_pass and played[:6] != played[6:]
    assert one_pass(questions, {}) == [0, 1, 2, 3]


def test_more_questions_per_iteration_than_there_are() -> None:
    assert sorted(positions_of(0, each_pass=range(3), per_iteration=6, seed=0)) == [0, 0, 1, 1, 2, 2]


def test_the_order_follows_from_the_seed() -> None:
    assert positions_of(0, each_pass=range(50), per_iteration=9, seed=1) == positions_of(
        0, each_pass=range(50), per_iteration=9, seed=1
    )
    assert positions_of(0, each_pass=range(50), per_iteration=9, seed=1) != positions_of(
        0, each_pass=range(50), per_iteration=9, seed=2
    )


def test_seeds_are_stable_and_differ_in_every_part() -> None:
    assert seed_of(1, 2, 3) == 1161130152
    assert len({seed_of(1, 2, 3), seed_of(1, 3, 2), seed_of(12, 3), seed_of(1, 23)}) == 4


def test_all_global_generators_are_seeded() -> None:
    seed_generators(7, 1)
    first = (random.random(), np.random.random(), torch.rand(()).item())
    seed_generators(7, 1)
    assert first == (random.random(), np.random.random(), torch.rand(()).item())
    seed_generators(7, 2)
    assert random.random() != first[0]


def test_the_fingerprint_knows_order_and_ids() -> None:
    questions = guess_questions(4)
    assert fingerprint(questions) == fingerprint(guess_questions(4))
    assert fingerprint(questions) != fingerprint(questions[::-1])
