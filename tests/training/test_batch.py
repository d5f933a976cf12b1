from __future__ import annotations

import numpy as np
import pytest
import torch
from bandit import GuessPolicy

from agents.trajectory import Completion, FinishReason, Trajectory, Turn
from training.batch import Example, collate, micro_batches, packed_micro_batches, tokens_run


def trajectory(prompt: tuple[int, ...], sampled: tuple[int, ...]) -> Trajectory:
    completion = Completion("", sampled, tuple(-0.5 for _ in sampled), FinishReason.STOP)
    return Trajectory("q", (Turn(prompt, (), completion, 1.0, "answer", True),), True, False, "", 1.0, {}, {}, "")


def example(prompt: tuple[int, ...], sampled: tuple[int, ...], advantage: float) -> Example:
    item = trajectory(prompt, sampled)
    return Example(item, np.where(item.loss_mask, np.float32(advantage), np.float32(0.0)))


def test_the_worked_example_of_the_module() -> None:
    batch = collate(
        [example((1, 2, 3), (4, 5), 1.0), example((1,), (7, 8), -1.0)], GuessPolicy(), device=torch.device("cpu")
    )
    assert batch.inputs["input_ids"].tolist() == [[1, 2, 3, 4, 5], [1, 7, 8, 0, 0]]
    assert batch.loss_mask.tolist() == [[False, False, False, True, True], [False, True, True, False, False]]
    assert batch.advantages.tolist() == [[0.0, 0.0, 0.0, 1.0, 1.0], [0.0, -1.0, -1.0, 0.0, 0.0]]
    assert batch.old_logprobs.tolist() == [[0.0, 0.0, 0.0, -0.5, -0.5], [0.0, -0.5, -0.5, 0.0, 0.0]]
    assert batch.ref_logprobs is None


def test_micro_batches_keep_to_the_budget_of_padded_tokens() -> None:
    lengths = [3, 9, 4, 4, 5]
    examples = [example((1,) * (length - 1), (2,), 1.0) for length in lengths]
    cut = micro_batches(examples, token_budget=10)
    # 9 alone; 5 + 4 padded to 10; 4 + 3 padded to 8
    assert [[item.length for item in part] for part in cut] == [[9], [5, 4], [4, 3]]


def test_an_example_above_the_budget_goes_alone() -> None:
    cut = micro_batches([example((1,) * 20, (2,), 1.0), example((1,), (2,), 1.0)], token_budget=10)
    assert [[item.length for item in part] for part in cut] == [[21], [2]]


def test_no_examples_make_no_batches() -> None:
    assert micro_batches([], token_budget=10) == []


def test_every_example_is_in_one_batch() -> None:
    examples = [example((1,) * length, (2,), 1.0) for length in range(1, 30)]
    cut = micro_batches(examples, token_budget=64)
    assert sorted(id(item) for part in cut for item in part) == sorted(id(item) for item in examples)


def test_credit_must_have_one_number_per_token() -> None:
    with pytest.raises(ValueError, match="one advantage for each of 3 tokens"):
        Example(trajectory((1, 2), (3,)), np.zeros(2, dtype=np.float32))


def test_packed_micro_batches_count_a_common_prompt_once() -> None:
    """Prompt A of 6 tokens with rests of 2, 2 and 3; prompt B of 4 with rests of 1 and 5."""
    a, b = (1,) * 6, (2,) * 4
    examples = [example(p, (7,) * n, 1.0) for p, n in [(a, 2), (b, 1), (a, 3), (b, 5), (a, 2)]]

    def cut(token_budget: int) -> list[list[tuple[int, int]]]:
        parts = packed_micro_batches(examples, token_budget=token_budget)
        assert all(len(part) == 1 or tokens_run(part, packed=True) <= token_budget for part in parts)
        return [[(len(item.prompt[0]), item.length - len(item.prompt[0])) for item in part] for part in parts]

    first, second = [(6, 3), (6, 2), (6, 2)], [(4, 5), (4, 1)]
    assert cut(6 + 7) == [first, second]  # B costs 4 + 6 = 10
    assert cut(6 + 7 - 1) == [first[:2], [first[2]], second]  # 6 + 2 beside B: 6 + 2 + 4 + 5
    assert cut(6 + 7 + 4 + 6) == [[*first, *second]]
    assert cut(6 + 7 + 4 + 6 - 1) == [[*first, second[0]], [second[1]]]
    assert cut(1) == [[one] for one in (*first, *second)]


def test_tokens_run_are_those_of_the_pass() -> None:
    a, b = (1,) * 6, (2,) * 4
    examples = [example(p, (7,) * n, 1.0) for p, n in [(a, 2), (a, 3), (b, 1)]]
    assert tokens_run(examples, packed=True) == 6 + 2 + 3 + 4 + 1
    assert tokens_run(examples, packed=False) == 3 * 9
    assert tokens_run([], packed=False) == tokens_run([], packed=True) == 0
