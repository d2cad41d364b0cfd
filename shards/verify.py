"""Hold every byte of a dataset against its manifest and indexes, and name every difference."""

from collections.abc import Callable

import numpy as np

from pipeline.core import storage
from pipeline.core.errors import DataError
from shards import index, layout
from shards.foreign import sha256_of
from shards.manifest import ShardEntry, read_manifest


def verify(folder: str, manifest: int | None = None, index_root: str | None = None, on_shard: Callable[[], None] = lambda: None) -> list[str]:
    """Every difference as one line, empty when all is as published; `on_shard` is called after each shard.

    Raises DataError when there is no manifest to hold it against.
    """
    root = index_root or folder
    differences: list[str] = []
    for shard in read_manifest(root, manifest).shards:
        differences += _shard_differences(folder, root, shard)
        on_shard()
    return differences


def _shard_differences(folder: str, root: str, shard: ShardEntry) -> list[str]:
    path = layout.tar_path(folder, shard.name)
    try:
        promised = index.read_index(layout.index_path(root, shard.name))
    except DataError as error:
        return [str(error)]
    if not storage.exists(path):
        return [f"{path}: missing"]
    found: list[str] = []
    if (promised.tar_bytes, len(promised), int(promised.captions.sum())) != (shard.bytes, shard.samples, shard.captions):
        found.append(f"{layout.index_path(root, shard.name)}: its counts are not the manifest's")
    if (size := storage.size(path)) != shard.bytes:
        return [*found, f"{path}: {size} bytes, the manifest says {shard.bytes}"]
    if (sha256 := sha256_of(path)) == shard.sha256:
        return found
    return [*found, f"{path}: sha256 {sha256}, the manifest says {shard.sha256}", *_sample_differences(path, promised)]


def _sample_differences(path: str, promised: index.ShardIndex) -> list[str]:
    """Which samples of a changed shard are damaged, by their own checksums: it works where the tar's headers no longer parse."""
    rows = [
        row
        for row in range(len(promised))
        if index.crc32c(storage.read_range(path, int(promised.offset[row]), int(promised.offset[row] + promised.length[row]))) != promised.crc32c[row]
    ]
    covered = int(np.sum(promised.length))
    outside = [] if rows else [f"{path}: changed outside its samples ({promised.tar_bytes - covered} bytes of end mark and skipped members)"]
    return [f"{path} row {row}: checksum differs from the index" for row in rows] + outside
