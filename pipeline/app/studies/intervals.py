"""How sure a figure of a few seeds on a few hundred held-out pictures is: 95 % intervals over both."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from eval.task import Outcomes

Bounds = tuple[float, float]
UNBOUNDED: Bounds = (-math.inf, math.inf)
RESAMPLES = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval, and the figure of each seed."""

    mean: float
    low: float
    high: float
    seeds: tuple[float, ...]

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def interval(runs: Sequence[Outcomes], bounds: Bounds = UNBOUNDED) -> Interval:
    """Of a metric, from one run a seed, all scored on the same items; `bounds` are the least and the highest value it can have."""
    found = _interval(_sums(runs), _counts(runs))
    return _at_a_bound(found, bounds, len(_counts(runs))) if found.mean in bounds else _clipped(found, bounds)


def difference(after: Sequence[Outcomes], before: Sequence[Outcomes], bounds: Bounds = UNBOUNDED) -> Interval:
    """Of `after` minus `before`, paired by seed and by item: what both share, such as a hard picture, cancels. `bounds` are those of either."""
    assert len(after) == len(before), "differences are paired by seed"
    assert all(np.array_equal(one.picture, other.picture) for one in after for other in before), "differences are paired by item"
    return _clipped(_interval(_sums(after) - _sums(before), _counts(after)), (bounds[0] - bounds[1], bounds[1] - bounds[0]))


def _interval(sums: NDArray[np.float64], counts: NDArray[np.float64]) -> Interval:
    """Student's t with the variances of two sources added and Welch and Satterthwaite's degrees of freedom.

    Seeds: the variance of the seeds' figures over their number. Pictures: the variance of the seeds' mean when the held-out pictures are drawn again with
    replacement, each with all its items. A bootstrap over three seeds alone would be too narrow: it draws the same seed three times in one of nine.

    Args:
        sums: `[seeds, pictures]`, of a picture's items.
        counts: `[pictures]`, its items.
    """
    figures = sums.sum(axis=1) / counts.sum()
    weights = np.random.default_rng(0).multinomial(len(counts), np.full(len(counts), 1 / len(counts)), size=RESAMPLES)
    of_pictures = float(np.var(weights @ sums.mean(axis=0) / (weights @ counts), ddof=1))
    of_seeds = float(np.var(figures, ddof=1)) / len(figures) if len(figures) > 1 else 0.0  # one seed: the interval is of the pictures alone
    variance = of_pictures + of_seeds
    mean = float(figures.mean())
    if variance == 0:
        return Interval(mean, mean, mean, tuple(figures.tolist()))
    freedom = variance**2 / (of_pictures**2 / (len(counts) - 1) + (of_seeds**2 / (len(figures) - 1) if of_seeds else 0.0))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * variance**0.5
    return Interval(mean, mean - half, mean + half, tuple(figures.tolist()))


def _clipped(found: Interval, bounds: Bounds) -> Interval:
    return replace(found, low=max(found.low, bounds[0]), high=min(found.high, bounds[1]))


def _at_a_bound(found: Interval, bounds: Bounds, pictures: int) -> Interval:
    """Every item had the least, or the highest, value: no variance to see, and yet the next picture may differ. Wilson's score interval, of the pictures."""
    squared = float(stats.norm.ppf((1 + CONFIDENCE) / 2)) ** 2
    reach = (bounds[1] - bounds[0]) * squared / (pictures + squared)
    return replace(found, high=bounds[0] + reach) if found.mean == bounds[0] else replace(found, low=bounds[1] - reach)


def _sums(runs: Sequence[Outcomes]) -> NDArray[np.float64]:
    """`[seeds, pictures]`."""
    return np.stack([np.bincount(_numbered(run), weights=run.values) for run in runs])


def _counts(runs: Sequence[Outcomes]) -> NDArray[np.float64]:
    """`[pictures]`, the same in every run."""
    assert all(np.array_equal(run.picture, runs[0].picture) for run in runs), "the seeds are scored on the same items"
    return np.bincount(_numbered(runs[0])).astype(np.float64)


def _numbered(run: Outcomes) -> NDArray[np.int64]:
    """Pictures numbered through, those without an item left out."""
    numbered: NDArray[np.int64] = np.unique(run.picture, return_inverse=True)[1]
    return numbered
