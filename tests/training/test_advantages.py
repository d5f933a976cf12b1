from __future__ import annotations

import numpy as np
import pytest

from training.advantages import group_relative, has_signal


def test_difference_from_the_mean_over_the_sample_standard_deviation() -> None:
    # mean 2, deviations -1 0 1 0, sample variance 2/3
    advantages = group_relative([1.0, 2.0, 3.0, 2.0])
    assert advantages == pytest.approx([-1.2247433, 0.0, 1.2247433, 0.0], abs=1e-6)


def test_without_scale_only_the_mean_is_taken_off() -> None:
    assert group_relative([0.0, 1.0, 0.0, 1.0], scale="none") == pytest.approx([-0.5, 0.5, -0.5, 0.5])


def test_equal_returns_give_zeros_exactly_whatever_the_rounding() -> None:
    # 0.1 + 0.2 and 0.3 differ in the last bit
    assert group_relative([0.1 + 0.2, 0.3, 0.3]).tolist() == [0.0, 0.0, 0.0]
    assert not has_signal([0.1 + 0.2, 0.3])
    assert has_signal([0.3, 0.31])


def test_a_group_of_one_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="at least two episodes"):
        group_relative([1.0])


@pytest.mark.parametrize("returns", [[], [[1.0, 2.0]]])
def test_anything_but_a_vector_is_refused(returns: list[float]) -> None:
    with pytest.raises(ValueError, match="vector"):
        group_relative(returns)


def test_the_argument_is_left_alone() -> None:
    returns = np.array([1.0, 2.0])
    group_relative(returns)
    assert returns.tolist() == [1.0, 2.0]
