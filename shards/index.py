"""The index of a shard: where each sample lies, how many captions it has, and the checksum every read is held against.

File: magic, version, number of samples, number of groups without a picture, bytes of the tar; then five little-endian arrays
(key hash u64, offset u64, length u64, captions u16, crc32c u32); then the crc32c of all that. 30 bytes a sample.
"""

import hashlib
import mmap
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from pipeline.core import storage
from pipeline.core.errors import DataError
from shards import tar

_HEADER = struct.Struct("<8sIQQQ")
_MAGIC = b"ALBEFIDX"
_VERSION = 1
_DTYPES = ("<u8", "<u8", "<u8", "<u2", "<u4")


@dataclass(frozen=True)
class ShardIndex:
    """One row a sample, in the order of the tar; offsets and lengths in bytes, headers and padding included."""

    key_hash: npt.NDArray[np.uint64]
    offset: npt.NDArray[np.uint64]
    length: npt.NDArray[np.uint64]
    captions: npt.NDArray[np.uint16]
    crc32c: npt.NDArray[np.uint32]
    tar_bytes: int
    without_image: int = 0

    def __len__(self) -> int:
        return len(self.offset)


@dataclass(frozen=True)
class Row:
    """One sample's line of an index."""

    key: str
    offset: int
    length: int
    captions: int
    crc32c: int


def key_hash(key: str) -> int:
    """The first 8 bytes of the key's sha256."""
    return int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()[:8], "little")


def crc32c(data: bytes | memoryview) -> int:
    return int(google_crc32c.value(bytes(data)))


def from_rows(rows: Sequence[Row], tar_bytes: int, without_image: int = 0) -> ShardIndex:
    return ShardIndex(
        key_hash=np.array([key_hash(row.key) for row in rows], dtype=np.uint64),
        offset=np.array([row.offset for row in rows], dtype=np.uint64),
        length=np.array([row.length for row in rows], dtype=np.uint64),
        captions=np.array([row.captions for row in rows], dtype=np.uint16),
        crc32c=np.array([row.crc32c for row in rows], dtype=np.uint32),
        tar_bytes=tar_bytes,
        without_image=without_image,
    )


def build_index(tar_path: str) -> ShardIndex:
    """Index a tar in one pass over its bytes.

    Groups without a picture are no samples; they are counted in `without_image`.

    Raises:
        DataError: the tar is cut off, has a damaged header or holds a member twice.
    """
    if not storage.is_local(tar_path):
        return index_of(memoryview(storage.read_bytes(tar_path)), tar_path)
    if storage.size(tar_path) == 0:  # what cannot be mapped
        return index_of(memoryview(b""), tar_path)
    with Path(tar_path.removeprefix("file://")).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        data = memoryview(mapped)
        try:
            return index_of(data, tar_path)
        finally:
            data.release()


def index_of(data: memoryview, where: str) -> ShardIndex:
    """Index a tar that is in memory; `where` is its name in errors."""
    rows, without_image = [], 0
    for group in tar.groups(data, where):
        if tar.image_member(group) is None:
            without_image += 1
            continue
        captions = _count_captions(data, group, where)
        rows.append(Row(group.key, group.start, group.end - group.start, captions, crc32c(data[group.start : group.end])))
    return from_rows(rows, len(data), without_image)


def _count_captions(data: memoryview, group: tar.Group, where: str) -> int:
    try:
        metadata = tar.metadata_of(data, group, where)
    except DataError:  # one bad json does not cost the shard: the sample stays an item, and reading it quarantines it by name
        metadata = {}
    return min(len(tar.captions_of(data, group, metadata)), np.iinfo(np.uint16).max)


def write_index(path: str, index: ShardIndex) -> None:
    storage.write_bytes(path, index_bytes(index))


def index_bytes(index: ShardIndex) -> bytes:
    """The index as the file holds it."""
    arrays: list[npt.NDArray[Any]] = [index.key_hash, index.offset, index.length, index.captions, index.crc32c]
    header = _HEADER.pack(_MAGIC, _VERSION, len(index), index.without_image, index.tar_bytes)
    body = header + b"".join(array.astype(dtype).tobytes() for array, dtype in zip(arrays, _DTYPES, strict=True))
    return body + struct.pack("<I", crc32c(body))


def read_index(path: str) -> ShardIndex:
    """Raises DataError when the file is missing, of another kind or version, or damaged."""
    if not storage.exists(path):
        raise DataError(f"{path}: no index; make it with `albef shards index`")
    data = storage.read_bytes(path)
    if len(data) < _HEADER.size + 4 or data[:8] != _MAGIC:
        raise DataError(f"{path}: not an index of ours; make it anew with `albef shards index`")
    _, version, count, without_image, tar_bytes = _HEADER.unpack_from(data)
    if version != _VERSION:
        raise DataError(f"{path}: index version {version}, this albef reads {_VERSION}; make it anew with `albef shards index`")
    expected = _HEADER.size + count * sum(np.dtype(dtype).itemsize for dtype in _DTYPES) + 4
    if len(data) != expected or crc32c(data[:-4]) != struct.unpack("<I", data[-4:])[0]:
        raise DataError(f"{path}: the index is damaged; make it anew with `albef shards index`")
    arrays: list[npt.NDArray[Any]] = []
    position = _HEADER.size
    for dtype in _DTYPES:
        arrays.append(np.frombuffer(data, dtype=dtype, count=count, offset=position))
        position += arrays[-1].nbytes
    hashes, offsets, lengths, captions, checksums = arrays
    return ShardIndex(hashes, offsets, lengths, captions, checksums, tar_bytes, without_image)
