"""All pairs of 64-bit hashes that differ in few bits, exactly, among millions.

Cut into radius + k bands, two hashes within the radius agree in k whole bands at least: hashes that agree in some k bands are the only candidates.
"""

import math
from collections.abc import Iterator
from functools import reduce
from itertools import combinations, pairwise
from typing import Any

import numpy as np

BITS = 64
CANDIDATES = 4_000_000  # compared at a time: about 100 MB
SORTING = 20  # what sorting one hash costs, in comparisons of a candidate

Hashes = np.ndarray[Any, np.dtype[np.uint64]]
Positions = np.ndarray[Any, np.dtype[np.int64]]


def near(hashes: Hashes, query: Hashes, radius: int = 4) -> Positions:
    """[pairs, 2]: positions in `hashes` and in `query`, in ascending order; a set asked for itself finds each hash itself, too."""
    assert hashes.dtype == np.uint64
    assert query.dtype == np.uint64
    known, known_of = np.unique(hashes, return_inverse=True)  # a thousand blank pictures are one hash
    asked, asked_of = np.unique(query, return_inverse=True)
    found = [np.empty(0, np.int64)]
    for mask in _masks(radius, _agreeing_bands(radius, len(known), len(asked))):
        found += [left * len(asked) + right for left, right in _agreeing(known, asked, mask, radius)]
    left, right = np.divmod(np.unique(np.concatenate(found)), max(len(asked), 1))
    pairs = _expanded(np.stack([left, right], 1), 0, known_of)
    pairs = _expanded(pairs, 1, asked_of)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


def near_pairs(hashes: Hashes, radius: int = 4) -> Positions:
    """[pairs, 2] of a set of different hashes, the smaller position first, each pair once: `near` of the set and itself, without the copies, which
    for 14 million hashes would take 4 GB to say that each is like itself."""
    assert hashes.dtype == np.uint64
    found = [np.empty(0, np.int64)]
    for mask in _masks(radius, _agreeing_bands(radius, len(hashes), len(hashes))):
        keys = hashes & mask
        order = np.argsort(keys)
        keys, apart = keys[order], 1
        left = np.arange(len(hashes) - 1)
        while len(left := left[keys[np.minimum(left + apart, len(keys) - 1)] == keys[left]]):
            one, other = order[left], order[left + apart]
            close = np.bitwise_count(hashes[one] ^ hashes[other]) <= radius
            one, other = one[close], other[close]
            found.append(np.minimum(one, other) * len(hashes) + np.maximum(one, other))
            apart += 1
            left = left[left + apart < len(keys)]
    pairs = np.unique(np.concatenate(found))
    return np.stack(np.divmod(pairs, max(len(hashes), 1)), 1)


def from_hex(hashes: list[str]) -> Hashes:
    """What the outcome tables hold, as `near` takes it."""
    return np.array([int(digits, 16) for digits in hashes], np.uint64)


def _agreeing_bands(radius: int, known: int, asked: int) -> int:
    """The k that costs least: more bands leave fewer candidates and more sorting."""

    def cost(k: int) -> float:
        return math.comb(radius + k, k) * (SORTING * (known + asked) + known * asked / 2 ** (BITS * k / (radius + k)))

    return min(range(1, 5), key=cost)


def _masks(radius: int, k: int) -> Iterator[np.uint64]:
    edges = [BITS * band // (radius + k) for band in range(radius + k + 1)]
    bands = [(1 << high) - (1 << low) for low, high in pairwise(edges)]
    for chosen in combinations(bands, k):
        yield np.uint64(reduce(int.__or__, chosen))


def _agreeing(known: Hashes, asked: Hashes, mask: np.uint64, radius: int) -> Iterator[tuple[Positions, Positions]]:
    """Positions of those that agree under the mask and lie within the radius."""
    known_keys, asked_keys = known & mask, asked & mask
    known_order, asked_order = np.argsort(known_keys), np.argsort(asked_keys)  # both sorted: the look-ups walk through memory in order
    known_keys, asked_keys = known_keys[known_order], asked_keys[asked_order]
    first = np.searchsorted(known_keys, asked_keys, "left")
    counts = np.searchsorted(known_keys, asked_keys, "right") - first
    hit = np.flatnonzero(counts)
    ends = np.cumsum(counts[hit])
    at = 0
    while at < len(hit):
        stop = max(at + 1, int(np.searchsorted(ends, (ends[at - 1] if at else 0) + CANDIDATES, "right")))
        some = hit[at:stop]
        right = asked_order[np.repeat(some, counts[some])]
        left = known_order[np.repeat(first[some], counts[some]) + _counting(counts[some])]
        close = np.bitwise_count(known[left] ^ asked[right]) <= radius
        yield left[close], right[close]
        at = stop


def _expanded(pairs: Positions, side: int, value_of: Positions) -> Positions:
    """Each distinct hash of one side replaced by all positions that have it."""
    order = np.argsort(value_of, kind="stable")
    counts = np.bincount(value_of, minlength=1)
    starts = np.cumsum(counts) - counts
    repeats = counts[pairs[:, side]]
    several = np.repeat(pairs, repeats, axis=0)
    several[:, side] = order[np.repeat(starts[pairs[:, side]], repeats) + _counting(repeats)]
    return several


def _counting(counts: Positions) -> Positions:
    """[3, 2] -> [0, 1, 2, 0, 1]"""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
