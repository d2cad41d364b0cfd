"""Copy a shard without some of its samples, byte for byte, a few megabytes at a time."""

import hashlib
import tarfile
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from pipeline.core import storage
from pipeline.core.errors import DataError
from shards import index, layout, tar
from shards.manifest import ShardEntry

PIECE_BYTES = 16 * 2**20


def pieces(folder: str, name: str) -> Iterator[tuple[int, list[memoryview]]]:
    """The samples of a shard as the tar holds them, some at a time, with the row of the first; each held against its checksum.

    Raises:
        DataError: the index is missing, or a sample is damaged.
    """
    path, shard = layout.tar_path(folder, name), index.read_index(layout.index_path(folder, name))
    row = 0
    while row < len(shard):
        stop = row + max(1, int(np.searchsorted(shard.offset[row:] + shard.length[row:], int(shard.offset[row]) + PIECE_BYTES, "right")))
        start, end = int(shard.offset[row]), int(shard.offset[stop - 1] + shard.length[stop - 1])
        data = memoryview(storage.read_range(path, start, end))
        samples = [data[int(offset) - start :][: int(length)] for offset, length in zip(shard.offset[row:stop], shard.length[row:stop], strict=True)]
        for number, sample in enumerate(samples, start=row):
            if index.crc32c(sample) != shard.crc32c[number]:
                raise DataError(f"{path} row {number}: checksum differs from the index; copy the shard again, or run `albef shards index` to take it as it is")
        yield row, samples
        row = stop


def copy_without(folder: str, entry: ShardEntry, keys: set[str], name: str) -> ShardEntry | None:
    """Write the shard as `name`, with its index, without the samples of those keys; None when nothing is left, and then nothing is written.

    Groups without a picture are left out, too. Same input, same bytes.
    """
    shard = index.read_index(layout.index_path(folder, entry.name))
    taken = np.array([index.key_hash(key) for key in sorted(keys)], np.uint64)
    kept: npt.NDArray[np.bool_] = ~np.isin(shard.key_hash, taken)
    if not kept.any():
        return None
    digest, position = hashlib.sha256(), 0
    with storage.atomic_write(layout.tar_path(folder, name)) as file:
        for first, samples in pieces(folder, entry.name):
            for row, sample in enumerate(samples, start=first):
                if kept[row]:
                    file.write(sample)
                    digest.update(sample)
                    position += len(sample)
        end = bytes(2 * tar.BLOCK + -(position + 2 * tar.BLOCK) % tarfile.RECORDSIZE)
        file.write(end)
        digest.update(end)
    columns = {column: getattr(shard, column)[kept] for column in ("key_hash", "length", "captions", "crc32c")}
    offset = (np.cumsum(columns["length"]) - columns["length"]).astype(np.uint64)
    index.write_index(layout.index_path(folder, name), replace(shard, **columns, offset=offset, tar_bytes=position + len(end), without_image=0))
    return ShardEntry(name, int(kept.sum()), int(columns["captions"].sum()), position + len(end), digest.hexdigest(), entry.source)
