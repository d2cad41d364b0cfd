"""Read shards in large pieces, sample by sample as the tar holds them, and copy one without some of its samples."""

import threading
import time
from collections.abc import Iterator
from functools import cache

import numpy as np
import numpy.typing as npt

from pipeline.core import storage
from pipeline.core.errors import DataError
from shards import index, layout, provenance
from shards.manifest import ShardEntry
from shards.remote.transport import DEADLINES, Counters, Transport
from shards.writer import new_shard

PIECE_BYTES = 16 * 2**20
GAP_BYTES = 2**18  # reading over less than this costs less than another request

Bytes = npt.NDArray[np.uint64]


def stretches(offset: Bytes, length: Bytes) -> Iterator[slice]:
    """Rows that are read at one go: neighbours, as many as fit `PIECE_BYTES`; a larger sample goes alone."""
    start, end = offset.astype(np.int64), (offset + length).astype(np.int64)
    row = 0
    while row < len(start):
        stop = max(row + 1, int(np.searchsorted(end, start[row] + PIECE_BYTES, "right")))
        gaps = np.flatnonzero(start[row + 1 : stop] > end[row : stop - 1] + GAP_BYTES)
        stop = row + 1 + int(gaps[0]) if len(gaps) else stop
        yield slice(row, stop)
        row = stop


def read_range(path: str, start: int, end: int, total: int) -> bytes:
    """Bytes [start, end) of a file of `total` bytes, through no cache: what is read here is read once.

    Raises:
        DataError: the file is missing, or not of that size.
        Stopped: the storage does not answer.
    """
    if not storage.is_local(path):
        deadline, never = time.monotonic() + DEADLINES.patience_s, threading.Event()
        return b"".join(bytes(chunk) for chunk in own_transport().chunks(path, start, end, total, deadline, never))
    data = storage.read_range(path, start, end)
    if len(data) != end - start:
        raise DataError(f"{path}: ends at byte {start + len(data)} of {total}; copy it again, or run `albef shards index` to take it as it is")
    return data


@cache  # its connections serve the whole process
def own_transport() -> Transport:
    return Transport(DEADLINES, Counters())


def read_samples(path: str, offset: Bytes, length: Bytes, total: int) -> Iterator[memoryview]:
    """The bytes of those samples, whose offsets ascend, some megabytes at a time; raises as `read_range` does."""
    for rows in stretches(offset, length):
        start, end = int(offset[rows.start]), int(offset[rows.stop - 1] + length[rows.stop - 1])
        data = memoryview(read_range(path, start, end, total))
        for at, size in zip(offset[rows], length[rows], strict=True):
            yield data[int(at) - start :][: int(size)]


def damage(path: str, row: int, sample: memoryview, crc32c: int) -> str | None:
    """What is wrong with a sample that was read, in one line, or None."""
    if index.crc32c(sample) == crc32c:
        return None
    return f"{path} row {row}: checksum differs from the index; copy the shard again, or run `albef shards index` to take it as it is"


def pieces(folder: str, name: str, index_root: str | None = None) -> Iterator[tuple[int, list[memoryview]]]:
    """The samples of a shard as the tar holds them, some at a time, with the row of the first; each held against its checksum.

    Raises:
        DataError: the index is missing, or a sample is damaged.
    """
    path, shard = layout.tar_path(folder, name), index.read_index(layout.index_path(index_root or folder, name))
    for rows in stretches(shard.offset, shard.length):
        samples = list(read_samples(path, shard.offset[rows], shard.length[rows], shard.tar_bytes))
        for number, sample in enumerate(samples, start=rows.start):
            if (damaged := damage(path, number, sample, int(shard.crc32c[number]))) is not None:
                raise DataError(damaged)
        yield rows.start, samples


def copy_without(folder: str, entry: ShardEntry, keys: set[str], name: str) -> ShardEntry | None:
    """Write the shard as `name`, with its index, without the samples of those keys; None when nothing is left, and then nothing is written.

    Groups without a picture are left out, too. Same input, same bytes.
    """
    shard = index.read_index(layout.index_path(folder, entry.name))
    taken = np.array([index.key_hash(key) for key in sorted(keys)], np.uint64)
    kept: npt.NDArray[np.bool_] = ~np.isin(shard.key_hash, taken)
    if not kept.any():
        return None
    with new_shard(folder, name) as copy:
        for first, samples in pieces(folder, entry.name):
            for row, sample in enumerate(samples, start=first):
                if kept[row]:
                    copy.add(sample, int(shard.key_hash[row]), int(shard.captions[row]), int(shard.crc32c[row]))
    provenance.copy_rows(folder, entry.name, name, kept)
    return copy.entry(entry.source)
