"""Learning rate and alpha at the steps that matter."""

from itertools import pairwise

import pytest

from training.schedule import alpha, learning_rate


def test_the_learning_rate_starts_at_zero_peaks_after_the_warm_up_and_ends_at_final_exactly() -> None:
    rates = [learning_rate(step, 100, 10, 1e-4, 1e-5) for step in range(100)]
    assert rates[0] == 0
    assert rates[5] == pytest.approx(5e-5)
    assert rates[10] == 1e-4
    assert rates[99] == 1e-5
    assert all(earlier < later for earlier, later in pairwise(rates[:11]))
    assert all(earlier > later for earlier, later in pairwise(rates[10:]))
    assert learning_rate(10 + 89 // 2, 100, 10, 1e-4, 1e-5) == pytest.approx(5.5e-5, rel=0.02)


def test_without_a_warm_up_the_first_step_has_the_peak() -> None:
    assert learning_rate(0, 50, 0, 3e-4, 0.0) == 3e-4


def test_a_run_of_one_step_or_one_that_ends_inside_its_warm_up_has_a_rate() -> None:
    assert learning_rate(0, 1, 0, 1e-4, 1e-5) == 1e-5
    assert learning_rate(3, 4, 10, 1e-4, 1e-5) == pytest.approx(3e-5)


def test_alpha_ramps_linearly_and_then_stays() -> None:
    assert [alpha(step, 4, 0.4) for step in (0, 1, 2, 4, 400)] == pytest.approx([0.0, 0.1, 0.2, 0.4, 0.4])
    assert alpha(0, 0, 0.4) == 0.4
