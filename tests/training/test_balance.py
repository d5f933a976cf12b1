"""Ranks get alike much to learn, and a group that moves is the same group."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from bandit import GuessPolicy, GuessTask, guess_questions
from hypothesis import given
from hypothesis import strategies as st

from mmsearch_env.images import Image
from training.balance import Move, balanced, moves, packed, unpacked
from training.batch import CriticTargets, Example
from training.engine import Engine, Place


def test_the_group_that_halves_the_difference_moves() -> None:
    assert moves([{0: 40, 1: 30, 2: 20}, {3: 10}]) == [Move(0, 0, 1)]
    assert moves([{0: 40}, {1: 41}]) == []
    assert moves([{0: 100}, {}]) == []  # the other rank would wait instead
    assert moves([{}, {}]) == []


@given(st.lists(st.lists(st.integers(1, 300), max_size=12), min_size=1, max_size=6))
def test_the_largest_rank_never_gets_more(sizes: list[list[int]]) -> None:
    numbered = iter(range(1000))
    costs = [{next(numbered): size for size in rank} for rank in sizes]
    held, before = [dict(one) for one in costs], max(sum(one.values()) for one in costs)
    for move in moves(costs):
        held[move.target][move.group] = held[move.source].pop(move.group)
    assert sorted(key for one in held for key in one) == sorted(key for one in costs for key in one)
    assert max(sum(one.values()) for one in held) <= before


def example() -> Example:
    """With a picture, a critic's targets and an end."""
    question = guess_questions()[1]
    played = (
        GuessTask(GuessPolicy(), [question]).rollout([question], group_size=1, seed=1, earlier=[0])[0].trajectories[0]
    )
    image = Image(np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8))
    played = replace(played, turns=(replace(played.turns[0], images=(image,)), *played.turns[1:]))
    tokens = len(played.loss_mask)
    made = np.arange(tokens, dtype=np.float32) / 3
    return Example(played, made, CriticTargets(made + 1, made + 2), end=2)


def test_a_group_arrives_as_it_left() -> None:
    (found,) = unpacked(packed([example()]))
    wanted = example()
    assert found.trajectory == wanted.trajectory
    assert found.critic is not None and wanted.critic is not None
    assert (found.advantages == wanted.advantages).all() and found.end == wanted.end
    assert (found.critic.returns == wanted.critic.returns).all()
    assert (found.critic.old_values == wanted.critic.old_values).all()


def test_one_rank_keeps_what_it_has(place: Place) -> None:
    engine = Engine(GuessPolicy().scorer, place=place)
    assert balanced({3: [example()]}, engine).keys() == {3}


def test_only_trajectories_are_read() -> None:
    text = packed([example()]).replace('"finish_reason": "stop"', '"finish_reason": "never"')
    with pytest.raises(Exception, match="expected a recorded trajectory, got ValueError"):
        unpacked(text)
