"""Hold every byte of a dataset against its manifest and indexes, and name every difference."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.core import storage
from pipeline.core.errors import DataError, StorageUnreachable
from shards import index, layout
from shards.manifest import Manifest, ShardEntry, read_manifest
from shards.tar_stream import TarStream
from shards.workers import Progress, no_progress, spread


@dataclass(frozen=True)
class _Job:
    folder: str
    root: str
    shard: ShardEntry
    quick: bool


def verify(
    folder: str,
    manifest: int | None = None,
    index_root: str | None = None,
    workers: int | None = None,
    quick: bool = False,
    progress: Progress = no_progress,
) -> list[str]:
    """Every difference as one line, empty when all is as published; `quick` looks at sizes and indexes and reads no tar.

    Each tar is read once, in bounded memory: hashed, walked, and its samples held against the index. A tar with a difference is read once more, to name
    the samples.

    Raises DataError when there is no manifest to hold it against, or the storage does not answer.
    """
    root = index_root or folder
    shards = read_manifest(root, manifest).shards
    differences: dict[str, list[str]] = {}
    total, done = sum(shard.bytes for shard in shards), 0
    progress("verifying", done, total)
    for job, found in spread(_shard_differences, [_Job(folder, root, shard, quick) for shard in shards], workers, total):
        differences[job.shard.name] = found
        done += job.shard.bytes
        progress("verifying", done, total)
    return [line for shard in shards for line in differences[shard.name]]


def lost_shards(folder: str, manifest: Manifest) -> list[tuple[int, str]]:
    """(number of the shard, what is wrong) where a tar is missing or of another size, from one listing of the folder: a check that costs nearly nothing."""
    sizes = {name: file.size for name, file in storage.list_sizes(folder).items()}
    found = [(number, layout.tar_path(folder, shard.name), sizes.get(f"{shard.name}.tar"), shard.bytes) for number, shard in enumerate(manifest.shards)]
    wrong = [(number, path, size, promised) for number, path, size, promised in found if size != promised]
    return [(number, f"{path}: missing" if size is None else _another_size(path, size, promised)) for number, path, size, promised in wrong]


def _shard_differences(job: _Job) -> list[str]:
    shard, path, index_path = job.shard, layout.tar_path(job.folder, job.shard.name), layout.index_path(job.root, job.shard.name)
    found: list[str] = []
    promised = None
    try:
        promised = index.read_index(index_path)
        counts, expected = (len(promised), int(promised.captions.sum()), promised.tar_bytes), (shard.samples, shard.captions, shard.bytes)
        if counts != expected:
            found.append(f"{index_path}: {_counts(*counts)}, the manifest says {_counts(*expected)}")
    except StorageUnreachable:  # says nothing of the index
        raise
    except DataError as error:
        found.append(str(error))
    if not storage.exists(path):
        return [*found, f"{path}: missing"]
    if (size := storage.size(path)) != shard.bytes:
        found.append(_another_size(path, size, shard.bytes))
    return found if job.quick else [*found, *_differences_within(path, index_path, shard, promised)]


def _differences_within(path: str, index_path: str, shard: ShardEntry, promised: index.ShardIndex | None) -> list[str]:
    with TarStream(path) as data:
        walked: index.ShardIndex | None = None
        cannot_be_walked = []
        try:
            walked = index.index_of(data, path)
        except DataError as error:
            cannot_be_walked = [str(error)]
        sha256 = data.sha256()
    changed = [f"{path}: sha256 {sha256}, the manifest says {shard.sha256}"] if sha256 != shard.sha256 else []
    if promised is None or (walked is not None and _same(walked, promised)):
        return [*changed, *cannot_be_walked]
    damaged = _damaged_rows(path, promised)
    if changed:
        rows = [f"{path} {rows}" for rows in _spans(damaged, "checksum differs from the index")]
        return [*changed, *cannot_be_walked, *(rows or [f"{path}: changed outside its samples"])]
    rows = [f"{index_path} {rows}" for rows in _spans(damaged | _differing_rows(walked, promised), "not what the tar has there")]
    return [*cannot_be_walked, *(rows or [f"{index_path}: not the index of {path}"])]


def _damaged_rows(path: str, promised: index.ShardIndex) -> set[int]:
    """Rows whose bytes have another checksum; it works where the tar's headers no longer parse."""
    with TarStream(path) as data:
        return {row for row in range(len(promised)) if index.crc32c_of(data, *_span(promised, row)) != int(promised.crc32c[row])}


def _span(one: index.ShardIndex, row: int) -> tuple[int, int]:
    return int(one.offset[row]), int(one.offset[row] + one.length[row])


def _differing_rows(walked: index.ShardIndex | None, promised: index.ShardIndex) -> set[int]:
    if walked is None:
        return set()
    common = min(len(walked), len(promised))
    differ: npt.NDArray[np.bool_] = np.zeros(common, np.bool_)
    for ours, theirs in zip(_columns(walked), _columns(promised), strict=True):
        differ |= ours[:common] != theirs[:common]
    return {*np.flatnonzero(differ).tolist(), *range(common, len(promised))}


def _same(one: index.ShardIndex, other: index.ShardIndex) -> bool:
    return index.index_bytes(one) == index.index_bytes(other)


def _columns(one: index.ShardIndex) -> tuple[npt.NDArray[np.generic], ...]:
    return one.key_hash, one.offset, one.length, one.captions, one.crc32c


def _spans(rows: set[int], what: str) -> Iterator[str]:
    """Rows that follow each other in one line: of a cut tar thousands do."""
    ordered = sorted(rows)
    start = 0
    for place in range(1, len(ordered) + 1):
        if place == len(ordered) or ordered[place] != ordered[place - 1] + 1:
            first, last = ordered[start], ordered[place - 1]
            yield f"row {first}: {what}" if first == last else f"rows {first} to {last} ({last - first + 1} samples): {what}"
            start = place


def _counts(samples: int, captions: int, size: int) -> str:
    return f"{samples} samples with {captions} captions in {size} bytes"


def _another_size(path: str, size: int, promised: int) -> str:
    return f"{path}: {size} bytes, the manifest says {promised}"
