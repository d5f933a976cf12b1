"""Intervals: clusters and seeds are what is drawn."""

from __future__ import annotations

import math

import numpy as np
import pytest

from agents.statistics import contrast, mean


def test_the_mean_is_the_mean_and_lies_inside() -> None:
    found = mean([0.0, 1.0, 1.0, 1.0], list("abcd"))
    assert found.mean == 0.75
    assert found.low < 0.75 < found.high <= 1.0
    assert str(mean([1.0, 1.0], list("ab"))) == "1.000 [1.000, 1.000]"
    assert math.isnan(mean([], []).mean)


def test_a_normal_approximation_agrees() -> None:
    """200 independent coin flips: half-width 1.96 * sqrt(p (1 - p) / n)."""
    values = [float(number % 2) for number in range(200)]
    found = mean(values, [str(number) for number in range(200)])
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * 0.5 / math.sqrt(200), rel=0.1)


def test_copies_of_a_question_add_no_certainty() -> None:
    """Sixteen copies of each of twelve questions say as much as the twelve."""
    values, names = [float(n % 2) for n in range(12)], [str(n) for n in range(12)]
    once = mean(values, names)
    copied = mean(values * 16, names * 16)
    assert (copied.low, copied.high) == (once.low, once.high)
    careless = mean(values * 16, [str(n) for n in range(192)])
    assert careless.high - careless.low < 0.4 * (once.high - once.low)


def test_parts_of_the_same_clusters_move_together() -> None:
    """If every entity is searched alike on both sides, the contrast is certain although the means are not."""
    clusters = [str(n) for n in range(40)] * 2
    values = np.array([[float(n % 2) for n in range(40)] * 2])
    first = np.arange(80) < 40
    found = contrast(values, clusters, [(1.0, first), (-1.0, ~first)])
    assert (found.mean, found.low, found.high) == (0.0, 0.0, 0.0)


def test_unlike_seeds_widen_the_interval() -> None:
    clusters = [str(n) for n in range(100)]
    alike = mean(np.full((3, 100), 0.5), clusters)
    unlike = mean(np.stack([np.full(100, share) for share in (0.2, 0.5, 0.8)]), clusters)
    assert alike.mean == unlike.mean == pytest.approx(0.5)
    assert alike.low == alike.high == pytest.approx(0.5)
    assert unlike.low == pytest.approx(0.2) and unlike.high == pytest.approx(0.8)


def test_a_part_without_questions_has_no_mean() -> None:
    nobody = np.zeros(2, dtype=np.bool_)
    assert math.isnan(contrast(np.ones((1, 2)), ["a", "b"], [(1.0, ~nobody), (-1.0, nobody)]).mean)


def test_a_draw_that_misses_a_part_is_not_counted() -> None:
    """Ten clusters, one question of the one kind: where it was not drawn there is nothing to compare."""
    free = np.array([n == 0 for n in range(10)])
    found = contrast(np.ones((1, 10)), [str(n) for n in range(10)], [(1.0, ~free), (-1.0, free)])
    assert (found.mean, found.low, found.high) == (0.0, 0.0, 0.0)
