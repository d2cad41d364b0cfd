"""A dataset as training reads it: samples by number, each checked against its checksum."""

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from pipeline.core import storage
from pipeline.core.errors import DataError, Stopped, StorageUnreachable
from shards import index, layout, tar
from shards.held import Held
from shards.manifest import Manifest, read_manifest
from shards.order.epoch import EpochOver, ItemTable
from shards.remote.ranges import RangeReader

INDEXES_HELD = 64  # of 30 bytes a sample; a loader says how many it needs
PAUSE_BEFORE_LOST_S = 1.0  # between the two looks at a shard that seems lost

_T = TypeVar("_T")
_R = TypeVar("_R")


class DamagedSample(DataError):
    """One sample's bytes are not what the index promises, or cannot be decoded; the loader replaces and quarantines it.

    `key` is the sample's, or its shard and row where the key itself cannot be trusted. Where one reason holds for several samples, all of a shard, `samples`
    says how many, and `before` how many of them come before the one that was asked for.
    """

    def __init__(self, message: str, key: str, before: int = 0, samples: int = 1) -> None:
        super().__init__(message)
        self.key, self.before, self.samples = key, before, samples


class DamagedShard(DamagedSample):
    """A tar is missing or of another size, or its index missing, damaged or another tar's: none of the shard's samples can be trusted."""


@dataclass(frozen=True)
class Sample:
    """A picture (encoded) with its captions and metadata."""

    key: str
    image: bytes
    captions: tuple[str, ...]
    metadata: dict[str, Any]


@dataclass(frozen=True)
class Part:
    """A dataset with its name in logs and state, and its share of the items drawn."""

    name: str
    share: Fraction
    dataset: "Dataset"


class Dataset:
    """The shards one manifest lists; samples are numbered through in the manifest's order. Safe to use from several threads.

    The manifest alone is read when it is opened. A shard's index is read, and its size asked for, when one of its samples is first needed.
    """

    def __init__(self, folder: str, manifest: Manifest, index_root: str | None = None, reader: RangeReader | None = None) -> None:
        self.folder, self.manifest, self.index_root = folder, manifest, index_root or folder
        self.reader = reader or RangeReader()
        self._paths = [layout.tar_path(folder, shard.name) for shard in manifest.shards]
        self.shard_starts = np.concatenate([[0], np.cumsum([shard.samples for shard in manifest.shards], dtype=np.int64)]).astype(np.int64)
        self._lost: dict[int, str] = {}  # shard -> why none of it can be read
        self.indexes: Held[int, index.ShardIndex] = Held(self._checked_index, INDEXES_HELD)

    @classmethod
    def open(cls, folder: str, manifest: int | None = None, index_root: str | None = None, reader: RangeReader | None = None) -> "Dataset":
        """Open with the manifest of that number or the newest; `index_root` is where index and manifests lie if not in the folder.

        `reader` reads the shards; datasets of one run may share it, and with it the cache.

        Raises:
            DataError: there is no dataset, or the manifest is damaged.
        """
        return cls(folder, read_manifest(index_root or folder, manifest), index_root, reader)

    @property
    def fingerprint(self) -> str:
        return self.manifest.fingerprint

    @property
    def num_samples(self) -> int:
        return int(self.shard_starts[-1])

    @property
    def parts(self) -> tuple[Part, ...]:
        """Itself: what a blend has several of."""
        return (Part(self.folder.rstrip("/").rsplit("/", 1)[-1], Fraction(1), self),)

    @property
    def pinned(self) -> int:
        """The number of the manifest."""
        return self.manifest.number

    def item_table(self, epoch_over: EpochOver) -> ItemTable:
        """The items of an epoch.

        Raises:
            DataError: the manifest is of a version that did not count what is needed, and an index that tells cannot be read.
        """
        shards = self.manifest.shards
        if epoch_over == "pairs":
            items = [shard.captions for shard in shards]
        elif all(shard.captioned is not None for shard in shards):
            items = [shard.captioned or 0 for shard in shards]
        else:
            items = [one.captioned for one in self._every_index()]
        return ItemTable(self.shard_starts, np.array(items, dtype=np.int64), self._captions_of, epoch_over)

    def byte_range(self, shard: int, first: int, last: int) -> tuple[int, int]:
        """Where the rows from first to last, both included, lie in the shard; all of them are the whole tar, which takes no index."""
        entry = self.manifest.shards[shard]
        if first == 0 and last == entry.samples - 1:
            return 0, entry.bytes
        held = self.indexes(shard)
        return int(held.offset[first]), int(held.offset[last] + held.length[last])

    def shard_of(self, sample: int) -> int:
        """The number of the shard that holds the sample."""
        return int(np.searchsorted(self.shard_starts, sample, side="right")) - 1

    def part_of(self, sample: int) -> tuple[int, int]:
        """The number of the part that holds the sample, and the sample's number there."""
        return 0, sample

    def bytes_of(self, sample: int) -> int:
        """Bytes of the sample in its shard, headers included."""
        shard = self.shard_of(sample)
        return int(self.indexes(shard).length[sample - int(self.shard_starts[shard])])

    def name_of(self, sample: int) -> str:
        """The shard's path and the row in it, for messages."""
        shard = self.shard_of(sample)
        return f"{self._paths[shard]} row {sample - int(self.shard_starts[shard])}"

    def read(self, sample: int, fresh: bool = False) -> Sample:
        """Read one sample, past any cache if `fresh`; what is damaged is looked at once more, then always so, before it counts as damaged.

        Raises:
            DamagedSample: its bytes differ from what was indexed, or its members do not parse.
            DamagedShard: its tar or index is missing, damaged, or not what the manifest says.
            DataError, Stopped: the storage forbids it or fails (never a reason to skip the sample).
        """
        if not 0 <= sample < self.num_samples:
            raise IndexError(sample)
        shard = self.shard_of(sample)
        row = sample - int(self.shard_starts[shard])
        try:
            return self._read(shard, row, fresh)
        except DamagedShard:
            raise
        except DamagedSample:
            if fresh:
                raise
            return self._read(shard, row, fresh=True)

    def _read(self, shard: int, row: int, fresh: bool) -> Sample:
        entry, path = self.manifest.shards[shard], self._paths[shard]

        def bytes_of(held: index.ShardIndex, fresh: bool) -> bytes:
            return self.reader.read(path, int(held.offset[row]), int(held.length[row]), entry.bytes, fresh, entry.sha256)

        held = self._unless_lost(shard, row, lambda _: self.indexes(shard))
        data = self._unless_lost(shard, row, lambda again: bytes_of(held, fresh or again))
        return _checked_sample(memoryview(data), f"{path} row {row}", held, row)

    def _unless_lost(self, shard: int, row: int, look: Callable[[bool], _T]) -> _T:
        """What `look` finds, at the second time where it finds damage at the first; a shard that is lost stays lost, so that all of this process agree."""
        path, samples = self._paths[shard], self.manifest.shards[shard].samples
        if shard in self._lost:
            raise DamagedShard(self._lost[shard], path, row, samples)
        try:
            return look(False)
        except DataError as error:
            self._refuse_what_is_no_damage(error)
        time.sleep(PAUSE_BEFORE_LOST_S)  # a file system of many nodes may be late
        try:
            return look(True)
        except DataError as error:
            self._refuse_what_is_no_damage(error)
            self._lost[shard] = str(error)
            raise DamagedShard(str(error), path, row, samples) from error

    def _refuse_what_is_no_damage(self, error: DataError) -> None:
        """Raises the error where the storage answered something else than "not there", and Stopped where all of the dataset is gone: it is not mounted."""
        if isinstance(error, StorageUnreachable) or (error.__cause__ is not None and not isinstance(error.__cause__, FileNotFoundError)):
            raise error
        try:
            gone = not storage.exists(layout.newest_path(self.index_root))
        except StorageUnreachable:
            gone = True
        if gone or (storage.is_local(self.folder) and not Path(self.folder.removeprefix("file://")).is_dir()):
            raise Stopped(f"{self.folder}: the dataset is gone ({error}); run the same command again when the storage is back") from error

    def _captions_of(self, shard: int) -> npt.NDArray[np.uint16] | None:
        """Captions of each sample; None where the shard is lost."""
        try:
            return self._unless_lost(shard, 0, lambda _: self.indexes(shard)).captions
        except DamagedShard:
            return None

    def _every_index(self) -> list[index.ShardIndex]:
        return _in_parallel(self._checked_index, range(len(self.manifest.shards)))

    def _checked_index(self, shard: int) -> index.ShardIndex:
        try:
            return storage.patiently(lambda: self._read_index(shard), self.reader.options.deadlines.patience_s)
        except StorageUnreachable as error:
            raise Stopped(f"{error}; run the same command again when the storage is back") from error

    def _read_index(self, shard: int) -> index.ShardIndex:
        entry, path = self.manifest.shards[shard], self._paths[shard]
        found = storage.size(path)
        if found != entry.bytes:
            raise DataError(f"{path}: {found} bytes, the manifest says {entry.bytes}; copy the shard again, or `albef shards index` to take it as it is")
        index_path = layout.index_path(self.index_root, entry.name)
        one = index.read_index(index_path)
        found_counts = (len(one), one.captioned, int(one.captions.sum()), one.tar_bytes)
        promised = (entry.samples, one.captioned if entry.captioned is None else entry.captioned, entry.captions, entry.bytes)
        if found_counts != promised:
            raise DataError(f"{index_path}: indexes {_told(*found_counts)}, the manifest says {_told(*promised)}; run `albef shards index` again")
        return one


def _told(samples: int, captioned: int, captions: int, tar_bytes: int) -> str:
    return f"{samples} samples, {captioned} of them captioned, with {captions} captions in {tar_bytes} bytes"


def _checked_sample(data: memoryview, where: str, held: index.ShardIndex, row: int) -> Sample:
    """The sample in these bytes, when they are the ones that were indexed.

    Raises DamagedSample otherwise.
    """
    if index.crc32c(data) != int(held.crc32c[row]):
        key = _trusted_key(data, int(held.key_hash[row])) or where.rsplit("/", 1)[-1]
        raise DamagedSample(f"{where}: checksum differs from the index; `albef shards verify` lists what else is damaged", key)
    sample = _parsed(data, where)
    if min(len(sample.captions), index.MAX_CAPTIONS) != held.captions[row]:
        found = f"{len(sample.captions)} captions, the index says {held.captions[row]}"
        raise DamagedSample(f"{where} ({sample.key}): {found}; run `albef shards index` again", sample.key)
    return sample


def _parsed(data: memoryview, where: str) -> Sample:
    key = where.rsplit("/", 1)[-1]
    try:
        group = next(tar.groups(data, where, whole=False))
        key = group.key
        picture = tar.image_member(group)
        if picture is None:
            raise DataError(f"{where}: {key} has no picture ({group.refused or index.WITHOUT_IMAGE}); run `albef shards index` again")
        metadata = tar.metadata_of(data, group, where)
    except StopIteration:
        raise DamagedSample(f"{where}: no sample's members; run `albef shards index` again", key) from None
    except DataError as error:
        raise DamagedSample(str(error), key) from error
    return Sample(key, bytes(data[picture.data : picture.data + picture.size]), tar.captions_of(data, group, metadata), metadata)


def _trusted_key(data: memoryview, key_hash: int) -> str | None:
    """The key in damaged bytes, if it is the one that was indexed."""
    try:
        key = next(tar.groups(data, "", whole=False)).key
    except (DataError, StopIteration):
        return None
    return key if index.key_hash(key) == key_hash else None


def _in_parallel(function: Callable[[_T], _R], items: Iterable[_T]) -> list[_R]:
    with ThreadPoolExecutor(16) as pool:  # one small request a shard: latency, not work
        return list(pool.map(function, items))
