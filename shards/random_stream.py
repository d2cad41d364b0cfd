"""Random numbers as a pure function of (seed, epoch, item, stream): no state, so nothing depends on workers, ranks or resume.

The mixing function is SplitMix64's (Steele, Lea and Flood 2014), whose output passes BigCrush.
"""

import numpy as np
import numpy.typing as npt

Keys = npt.NDArray[np.uint64]
Integers = npt.NDArray[np.int64]

# Streams in use here; the rooms above take numbers from 100.
CAPTION, TRANSFORM, SHARD_ORDER, BLOCK_ORDER, REPLACEMENT, FIRST_ITEM = range(6)

_FEISTEL_TURNS = 8  # of two rounds each; with five, the 120 permutations of five elements are not yet equally likely
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def mixed(values: Keys) -> Keys:
    """SplitMix64's finaliser: a bijection of the 64-bit numbers."""
    values = (values ^ (values >> np.uint64(30))) * _FIRST
    values = (values ^ (values >> np.uint64(27))) * _SECOND
    return values ^ (values >> np.uint64(31))


def item_keys(seed: int, epoch: int, items: npt.NDArray[np.int64] | npt.NDArray[np.uint64]) -> Keys:
    """One key an item, `uint64 [N]`."""
    key = np.zeros(1, dtype=np.uint64)
    for part in (seed, epoch):
        key = mixed(key + _GOLDEN + np.uint64(part))
    return mixed(key + _GOLDEN * (items.astype(np.uint64) + np.uint64(1)))


def hashes(keys: Keys, stream: int, count: int) -> Keys:
    """`uint64 [N, count]`: the first `count` numbers of each key's stream."""
    start = mixed(keys ^ mixed(np.array([stream + 1], dtype=np.uint64) * _GOLDEN))
    return mixed(start[:, None] + _GOLDEN * np.arange(1, count + 1, dtype=np.uint64))


def uniforms(key: Keys, stream: int, count: int) -> npt.NDArray[np.float64]:
    """`float64 [N, count]`, uniform in the open interval (0, 1): safe to take logarithms of."""
    drawn = hashes(key, stream, count) >> np.uint64(12)  # 52 bits: with 53, the largest plus one half would round to 1.0
    return (drawn.astype(np.float64) + 0.5) * 2.0**-52


def permutation(key: int, stream: int, size: int) -> npt.NDArray[np.int64]:
    """A permutation of range(size), drawn by sorting its members' hashes."""
    return np.argsort(hashes(np.array([key], dtype=np.uint64), stream, size)[0], kind="stable")


def permuted(keys: Keys, sizes: Integers, places: Integers) -> Integers:
    """Where the permutation of range(size) that belongs to each row's key sends the row's place; `int64 [N]`, nothing is stored.

    A Feistel network with additions instead of exclusive-ors, so that it works on a rectangle of any sides (Black and Rogaway 2002): the square root of the
    size is the side, and the few cells that are too many are walked through until the way leads back inside.
    """
    sides = np.ceil(np.sqrt(sizes)).astype(np.int64)
    widths = -(-sizes // sides)
    result = _feistel(keys, sides, widths, places)
    while (outside := np.flatnonzero(result >= sizes)).size:
        result[outside] = _feistel(keys[outside], sides[outside], widths[outside], result[outside])
    return result


def _feistel(keys: Keys, heights: Integers, widths: Integers, cells: Integers) -> Integers:
    """A bijection of the cells of each row's rectangle."""
    row, column = np.divmod(cells, widths)
    for turn in range(_FEISTEL_TURNS):
        row = (row + _round(keys, 2 * turn, column)) % heights
        column = (column + _round(keys, 2 * turn + 1, row)) % widths
    return np.asarray(row * widths + column, dtype=np.int64)


def _round(keys: Keys, number: int, values: Integers) -> Integers:
    drawn = mixed(keys + _GOLDEN * (values.astype(np.uint64) + np.uint64(number << 48)))
    return (drawn >> np.uint64(2)).astype(np.int64)
