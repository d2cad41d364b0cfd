"""Intervals against worlds whose truth is known, and the paired difference against a plain one."""

import numpy as np
import pytest
from scipy import stats

from eval.task import Outcomes
from pipeline.app.studies.intervals import difference, interval


def drawn(rng: np.random.Generator, seeds: int, pictures: int, of_seed: float, of_picture: float, truth: float = 0.0, captions: int = 5) -> list[Outcomes]:
    """Runs whose figure is `truth` + noise of the seed + noise of the picture, the latter shared by its captions and by the seeds."""
    picture = np.repeat(np.arange(pictures), captions)
    shared = rng.normal(0, of_picture, pictures)[picture]
    return [Outcomes(truth + rng.normal(0, of_seed) + shared, picture) for _ in range(seeds)]


@pytest.mark.parametrize(("of_seed", "of_picture"), [(1.0, 0.5), (0.02, 5.0), (0.4, 5.0)])
def test_the_interval_holds_the_truth_as_often_as_it_says(of_seed: float, of_picture: float) -> None:
    rng = np.random.default_rng(0)
    found = [interval(drawn(rng, 3, 80, of_seed, of_picture, truth=7.0)) for _ in range(400)]
    held = np.mean([one.low <= 7.0 <= one.high for one in found])
    assert 0.92 <= held <= 0.995  # 0.95 is meant; 400 draws are sure to 0.02, and adding the two variances errs on the wide side


def test_many_captions_of_a_picture_do_not_make_it_more_sure() -> None:
    one, many = (interval(drawn(np.random.default_rng(1), 1, 60, 0.0, 3.0, captions=captions)) for captions in (1, 20))
    assert many.high - many.low == pytest.approx(one.high - one.low, rel=0.1)


def test_the_interval_of_one_seed_is_that_of_the_pictures_means() -> None:
    rng = np.random.default_rng(2)
    values, picture = rng.normal(50, 10, 400), np.repeat(np.arange(100), 4)
    found = interval([Outcomes(values, picture)])
    means = values.reshape(100, 4).mean(axis=1)
    low, high = stats.t.interval(0.95, 99, means.mean(), stats.sem(means))
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == (pytest.approx(low, abs=0.15), pytest.approx(high, abs=0.15))


def test_what_two_rows_share_cancels_in_their_difference() -> None:
    rng = np.random.default_rng(3)
    before = drawn(rng, 3, 50, of_seed=4.0, of_picture=9.0)
    after = [Outcomes(one.values + 2.0 + rng.normal(0, 0.1, one.values.shape), one.picture) for one in before]
    found = difference(after, before)
    assert found.mean == pytest.approx(2.0, abs=0.05)
    assert found.excludes_zero
    assert found.high - found.low < 0.5 < interval(after).high - interval(after).low
    assert found.seeds == tuple(pytest.approx(float(np.mean(a.values - b.values))) for a, b in zip(after, before, strict=True))


def test_rows_that_do_not_differ_are_said_not_to() -> None:
    before = drawn(np.random.default_rng(4), 3, 50, 1.0, 1.0)
    found = difference(before, before)
    assert (found.mean, found.low, found.high) == (0.0, 0.0, 0.0)
    assert not found.excludes_zero


def test_figures_of_other_items_are_not_compared() -> None:
    rng = np.random.default_rng(5)
    with pytest.raises(AssertionError, match="paired by item"):
        difference(drawn(rng, 2, 50, 1.0, 1.0), drawn(rng, 2, 51, 1.0, 1.0))


@pytest.mark.parametrize(("right", "low", "high"), [(0, 0.0, 16.11), (20, 83.89, 100.0)])
def test_none_or_all_right_has_wilsons_interval_and_not_one_without_width(right: int, low: float, high: float) -> None:
    runs = [Outcomes(np.full(20, 100.0 * (right > 0)), np.arange(20))] * 2
    found = interval(runs, (0.0, 100.0))
    theirs = stats.binomtest(right, 20).proportion_ci(method="wilson")
    assert (found.low, found.high) == (pytest.approx(100 * theirs.low), pytest.approx(100 * theirs.high))
    assert (found.low, found.high) == (pytest.approx(low, abs=0.01), pytest.approx(high, abs=0.01))


def test_an_interval_ends_where_the_figure_must() -> None:
    rare = [Outcomes(100.0 * (np.arange(20) == 0), np.arange(20))]
    common = [Outcomes(100.0 * (np.arange(20) != 0), np.arange(20))]
    assert interval(rare).low < 0
    assert interval(rare, (0.0, 100.0)).low == 0
    assert interval(common).high > 100
    assert interval(common, (0.0, 100.0)).high == 100
    opposite = [Outcomes(100.0 * (np.arange(4) != 0), np.arange(4))]
    assert difference(opposite, [Outcomes(np.zeros(4), np.arange(4))]).high > 100
    assert difference(opposite, [Outcomes(np.zeros(4), np.arange(4))], (0.0, 100.0)).high == 100
