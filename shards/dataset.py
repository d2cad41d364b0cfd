"""A dataset as training reads it: samples by number, each checked against its checksum."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from pipeline.core import storage
from pipeline.core.errors import DataError
from shards import index, layout, tar
from shards.manifest import Manifest, ShardEntry, read_manifest
from shards.ranges import CACHE_BYTES, RangeReader

_T = TypeVar("_T")
_R = TypeVar("_R")


class DamagedSample(DataError):
    """The bytes of one sample are not what the index promises, or cannot be decoded; the loader replaces and quarantines it.

    `key` is the sample's, or its shard and row where the key itself cannot be trusted.
    """

    def __init__(self, message: str, key: str) -> None:
        super().__init__(message)
        self.key = key


@dataclass(frozen=True)
class Sample:
    """A picture (encoded) with its captions and metadata."""

    key: str
    image: bytes
    captions: tuple[str, ...]
    metadata: dict[str, Any]


class Dataset:
    """The shards one manifest lists; samples are numbered through in the manifest's order. Safe to use from several threads."""

    def __init__(self, folder: str, manifest: Manifest, indexes: list[index.ShardIndex], cache_bytes: int = CACHE_BYTES) -> None:
        self.folder, self.manifest = folder, manifest
        self.shard_starts = np.concatenate([[0], np.cumsum([shard.samples for shard in manifest.shards], dtype=np.int64)]).astype(np.int64)
        self.captions_per_sample: npt.NDArray[np.uint16] = _concatenated([one.captions for one in indexes], np.uint16)
        self.key_hashes: npt.NDArray[np.uint64] = _concatenated([one.key_hash for one in indexes], np.uint64)
        self._offset = _concatenated([one.offset for one in indexes], np.uint64)
        self._length = _concatenated([one.length for one in indexes], np.uint64)
        self._crc32c = _concatenated([one.crc32c for one in indexes], np.uint32)
        self._reader = RangeReader(cache_bytes)

    @classmethod
    def open(cls, folder: str, manifest: int | None = None, index_root: str | None = None, cache_bytes: int = CACHE_BYTES) -> "Dataset":
        """Open with the manifest of that number or the newest; `index_root` is where index and manifests lie if not in the folder.

        `cache_bytes` bounds the copies of remote shards in the temporary folder.

        Raises:
            DataError: no dataset, or a shard or index that is missing, damaged or not of the size the manifest says.
        """
        root = index_root or folder
        pinned = read_manifest(root, manifest)

        def checked(shard: ShardEntry) -> index.ShardIndex:
            return _checked_index(folder, root, shard)

        return cls(folder, pinned, _in_parallel(checked, pinned.shards), cache_bytes)

    @property
    def fingerprint(self) -> str:
        return self.manifest.fingerprint

    @property
    def num_samples(self) -> int:
        return int(self.shard_starts[-1])

    def cache_holds(self, shards: int) -> bool:
        """Whether that many shards, as large as they are on average, fit the cache; local ones need none."""
        entries = self.manifest.shards
        return storage.is_local(self.folder) or min(shards, len(entries)) * sum(shard.bytes for shard in entries) <= self._reader.cache_bytes * len(entries)

    def shard_of(self, sample: int) -> int:
        """The number of the shard that holds the sample."""
        return int(np.searchsorted(self.shard_starts, sample, side="right")) - 1

    def name_of(self, sample: int) -> str:
        """The shard's path and the row in it, for messages."""
        shard = self.shard_of(sample)
        return f"{layout.tar_path(self.folder, self.manifest.shards[shard].name)} row {sample - int(self.shard_starts[shard])}"

    def read(self, sample: int) -> Sample:
        """Read one sample.

        Raises:
            DamagedSample: its bytes differ from what was indexed, or its members do not parse.
            DataError, Stopped: the storage fails (never a reason to skip the sample).
        """
        if not 0 <= sample < self.num_samples:
            raise IndexError(sample)
        shard = self.shard_of(sample)
        entry = self.manifest.shards[shard]
        start, length = int(self._offset[sample]), int(self._length[sample])
        path = layout.tar_path(self.folder, entry.name)
        data = self._reader.read(path, start, length, entry.bytes)
        where = self.name_of(sample)
        if index.crc32c(data) != int(self._crc32c[sample]):
            key = _trusted_key(data, int(self.key_hashes[sample])) or where.rsplit("/", 1)[-1]
            raise DamagedSample(f"{where}: checksum differs from the index; `albef shards verify` lists what else is damaged", key)
        return _parsed(memoryview(data), where)


def _parsed(data: memoryview, where: str) -> Sample:
    group = next(tar.groups(data, where, whole=False))
    picture = tar.image_member(group)
    assert picture is not None, "only groups with a picture are indexed"
    try:
        metadata = tar.metadata_of(data, group, where)
    except DataError as error:
        raise DamagedSample(str(error), group.key) from error
    return Sample(group.key, bytes(data[picture.data : picture.data + picture.size]), tar.captions_of(data, group, metadata), metadata)


def _trusted_key(data: bytes, key_hash: int) -> str | None:
    """The key in damaged bytes, if it is the one that was indexed."""
    try:
        key = next(tar.groups(memoryview(data), "", whole=False)).key
    except (DataError, StopIteration):
        return None
    return key if index.key_hash(key) == key_hash else None


def _checked_index(folder: str, root: str, shard: ShardEntry) -> index.ShardIndex:
    path = layout.tar_path(folder, shard.name)
    found = storage.size(path)
    if found != shard.bytes:
        raise DataError(f"{path}: {found} bytes, the manifest says {shard.bytes}; copy the shard again, or `albef shards index` to take it as it is")
    one = index.read_index(layout.index_path(root, shard.name))
    if len(one) != shard.samples or one.tar_bytes != shard.bytes:
        raise DataError(f"{layout.index_path(root, shard.name)}: indexes {len(one)} samples, the manifest says {shard.samples}; run `albef shards index` again")
    return one


def _in_parallel(function: Callable[[_T], _R], items: Iterable[_T]) -> list[_R]:
    with ThreadPoolExecutor(16) as pool:  # one small request a shard: latency, not work
        return list(pool.map(function, items))


def _concatenated(arrays: list[npt.NDArray[Any]], dtype: Any) -> npt.NDArray[Any]:
    return np.concatenate([*arrays, np.empty(0, dtype)]).astype(dtype)
