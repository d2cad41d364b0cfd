"""Which dataset of a blend fills each place of a lane: a pure function of the place, so that nothing has to be counted through to resume.

Two datasets share a lane's places by rounding: after c places the first has had floor(c x weight + phase). Phases 0/lanes, 1/lanes, ... make the lanes' sum
floor(lanes x c x weight) (Hermite's identity), so the whole batch keeps the ratio to one item. More datasets are a tree of such pairs, the heavier nearer to
the root (Huffman 1952).
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Union

import numpy as np
import numpy.typing as npt

from shards.order.blend import SMALLEST_SHARE
from shards.random_stream import item_keys, permutation

Integers = npt.NDArray[np.int64]

_FINEST = SMALLEST_SHARE.denominator  # of the splits: places x lanes x denominator stay below 2**63 for a hundred billion places a lane


@dataclass(frozen=True)
class _Split:
    """Of the places that come here, `left` takes the share `numerator / denominator`; leaves are numbers of datasets."""

    numerator: int
    denominator: int
    phases: Integers
    left: Union["_Split", int]
    right: Union["_Split", int]

    def left_before(self, lanes: Integers, counts: Integers) -> Integers:
        """How many of the first `counts` places the left side takes."""
        return np.asarray((counts * (self.numerator * len(self.phases)) + self.denominator * self.phases[lanes]) // (self.denominator * len(self.phases)))


class Shares:
    """Weights, whose sum is 1 and of which none is below SMALLEST_SHARE, of the datasets that fill the places of `lanes` lanes."""

    def __init__(self, weights: Sequence[Fraction], lanes: int) -> None:
        assert sum(weights) == 1
        assert min(weights) >= SMALLEST_SHARE  # a smaller one could be rounded to nothing
        self.weights, self.lanes = tuple(weights), lanes
        self._root = _tree(self.weights, lanes)

    def with_lanes(self, lanes: int) -> "Shares":
        """The same weights over another number of lanes."""
        return Shares(self.weights, lanes)

    def draws(self, lanes: Integers, places: Integers) -> tuple[Integers, Integers]:
        """The dataset that fills each of these places of these lanes, and how many places of the lane it has filled before."""
        sources, counts = np.empty_like(places), places.copy()
        self._descend(self._root, np.arange(len(places)), lanes, sources, counts)
        return sources, counts

    def taken(self, places: Integers) -> Integers:
        """How many of the first `places[lane]` places of each lane every dataset fills, `int64 [lanes, datasets]`."""
        counts = np.empty((self.lanes, len(self.weights)), dtype=np.int64)
        waiting: list[tuple[_Split | int, Integers]] = [(self._root, places)]
        while waiting:
            node, before = waiting.pop()
            if isinstance(node, int):
                counts[:, node] = before
            else:
                left = node.left_before(np.arange(self.lanes), before)
                waiting += [(node.left, left), (node.right, before - left)]
        return counts

    def _descend(self, node: _Split | int, rows: Integers, lanes: Integers, sources: Integers, counts: Integers) -> None:
        if isinstance(node, int):
            sources[rows] = node
            return
        before, after = (node.left_before(lanes[rows], counts[rows] + more) for more in (0, 1))
        goes_left = after > before
        counts[rows] = np.where(goes_left, before, counts[rows] - before)
        self._descend(node.left, rows[goes_left], lanes, sources, counts)
        self._descend(node.right, rows[~goes_left], lanes, sources, counts)


def _tree(weights: Sequence[Fraction], lanes: int) -> _Split | int:
    """Joins the two lightest again and again."""
    nodes: list[tuple[Fraction, int, _Split | int]] = [(weight, number, number) for number, weight in enumerate(weights)]
    heapq.heapify(nodes)
    for joined in range(len(weights), 2 * len(weights) - 1):
        light, _, left = heapq.heappop(nodes)
        heavy, _, right = heapq.heappop(nodes)
        share = (light / (light + heavy)).limit_denominator(_FINEST)
        phases = permutation(int(item_keys(0, 0, np.array([joined]))[0]), 0, lanes)  # lanes that round up here should not be those that do so elsewhere
        heapq.heappush(nodes, (light + heavy, joined, _Split(share.numerator, share.denominator, phases, left, right)))
    return nodes[0][2]
