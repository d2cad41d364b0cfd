"""Between the passes of a reshard: at which sample each new shard begins."""

import tarfile
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from pipeline.core import storage
from shards.reshard.request import Portion, Request, Rows, Work
from shards.writer import END_MARK

AT_ONCE = 2_000_000  # samples whose order and length are in memory, some 100 bytes each while they are sorted and cut

Orders = npt.NDArray[np.uint64]


def cut(parts: Iterable[tuple[Orders, Orders]], max_samples: int, max_bytes: int | None) -> list[int]:
    """The order of the first sample of each shard, from `(orders, lengths)` of all samples, ascending.

    A shard is filled while it has at most `max_samples` and its tar at most `max_bytes`; a single larger sample gets a shard of its own.
    """
    most = np.inf if max_bytes is None else max_bytes // tarfile.RECORDSIZE * tarfile.RECORDSIZE - END_MARK
    first_of: list[int] = []
    orders, lengths = np.empty(0, np.uint64), np.empty(0, np.uint64)  # of the shard that is not full yet
    for more_orders, more_lengths in parts:
        orders, lengths = np.concatenate([orders, more_orders]), np.concatenate([lengths, more_lengths])
        ends = np.cumsum(lengths, dtype=np.int64)
        first = 0
        while first < len(orders):
            before = int(ends[first - 1]) if first else 0
            stop = min(first + max_samples, max(first + 1, int(np.searchsorted(ends, before + most, "right"))))
            if stop >= len(orders):
                break
            first_of.append(int(orders[first]))
            first = stop
        orders, lengths = orders[first:], lengths[first:]
    return [*first_of, int(orders[0])] if len(orders) else first_of


def in_order(work: Work, portions: Sequence[Portion], request: Request, samples: int) -> Iterator[tuple[Orders, Orders]]:
    """`(orders, lengths)` of all rows kept, ascending, some millions at a time."""
    if request.shuffle is None:
        for portion in portions:
            rows = work.rows(portion)
            yield rows["order"], rows["length"]
        return
    parts = -(-samples // AT_ONCE)
    for part in range(parts):
        low, high = (part * 2**64 // parts, (part + 1) * 2**64 // parts - 1)  # random orders: every range of them has its share
        found = [_between(work.rows(portion), low, high) for portion in portions]
        orders, lengths = (np.concatenate(column) for column in zip(*found, strict=True))
        ascending = np.argsort(orders)
        yield orders[ascending], lengths[ascending]


def _between(rows: Rows, low: int, high: int) -> tuple[Orders, Orders]:
    """Order and length of the rows in [low, high]; copies, so that the rest need not stay in memory."""
    start, stop = np.searchsorted(rows["order"], np.uint64(low), "left"), np.searchsorted(rows["order"], np.uint64(high), "right")
    return rows["order"][start:stop].copy(), rows["length"][start:stop].copy()


def write_cuts(work: Work, portions: Sequence[Portion], first_of: Sequence[int]) -> None:
    """Where each shard begins in each portion's rows, and where the last one ends: `int64 [shards + 1, portions]`."""
    table = np.empty((len(first_of) + 1, len(portions)), np.int64)
    starts = np.array(first_of, np.uint64)
    for portion in portions:
        orders = work.rows(portion)["order"]
        table[:-1, portion.number] = np.searchsorted(orders, starts, "left")
        table[-1, portion.number] = len(orders)
    storage.write_bytes(work.path("cuts"), table.tobytes())


def read_cuts(work: Work, portions: int, shard: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Of each portion the first row of this shard, and the first after it."""
    size = 8 * portions
    both = np.frombuffer(storage.read_range(work.path("cuts"), shard * size, (shard + 2) * size), np.int64).reshape(2, portions)
    return both[0], both[1]
