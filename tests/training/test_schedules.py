from __future__ import annotations

import pytest

from training.schedules import LearningRate


def test_warm_up_rises_to_the_peak_and_never_starts_at_zero() -> None:
    rate = LearningRate(peak=1.0, warmup_steps=4, total_steps=10)
    assert [rate.at(step) for step in range(6)] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1.0])


@pytest.mark.parametrize(
    ("shape", "expected"),
    [("constant", [1.0, 1.0, 1.0]), ("linear", [1.0, 0.6, 0.2]), ("cosine", [1.0, 0.6, 0.2])],
)
def test_decays_from_the_peak_to_the_final_fraction(shape: str, expected: list[float]) -> None:
    fraction = 0.0 if shape == "constant" else 0.2
    rate = LearningRate(peak=1.0, shape=shape, total_steps=8, final_fraction=fraction)
    assert [rate.at(step) for step in (0, 4, 8)] == pytest.approx(expected)
    assert rate.at(100) == pytest.approx(expected[-1])


def test_sigmoid_is_the_schedule_of_mmsearch_r1() -> None:
    # 2e-6 decaying to 1.05e-6 at step 45, 5.7e-7 at 50, 1.7e-7 at 60, floor 1e-7
    rate = LearningRate(peak=2e-6, shape="sigmoid", total_steps=100, final_fraction=0.05, centre=45)
    assert rate.at(0) == pytest.approx(2e-6, rel=1e-3)
    assert rate.at(45) == pytest.approx(1.05e-6)
    assert rate.at(50) == pytest.approx(5.7e-7, rel=0.01)
    assert rate.at(60) == pytest.approx(1.7e-7, rel=0.05)
    assert rate.at(10_000) == pytest.approx(1e-7)
