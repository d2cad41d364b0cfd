"""The index of a shard: where each sample lies, how many captions it has, and the checksum every read is held against.

File: magic, version, number of samples, number of groups without a picture, bytes of the tar; then five little-endian arrays
(key hash u64, offset u64, length u64, captions u16, crc32c u32); then the crc32c of all that. 30 bytes a sample.
"""

import hashlib
import logging
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from pipeline.core import storage
from pipeline.core.errors import DataError
from shards import tar
from shards.tar_stream import TarStream

log = logging.getLogger(__name__)

WITHOUT_IMAGE = "without_image"
NAMED = 5  # samples left out that the log names, of each reason and shard; the counts are of all

_HEADER = struct.Struct("<8sIQQQ")
_MAGIC = b"ALBEFIDX"
_VERSION = 1
_DTYPES = ("<u8", "<u8", "<u8", "<u2", "<u4")
_CRC_PIECE = 2**23
MAX_CAPTIONS = np.iinfo(np.uint16).max


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

    @property
    def captioned(self) -> int:
        """Samples with at least one caption."""
        return int(np.count_nonzero(self.captions))


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


@dataclass(frozen=True)
class Scan:
    """What one pass over a tar found; `left_out` counts the groups that are no samples by reason."""

    index: ShardIndex
    left_out: Counter[str]
    sha256: str


def crc32c(data: bytes | memoryview) -> int:
    return int(google_crc32c.value(np.frombuffer(data, np.uint8)))  # it refuses a memoryview, and a copy costs as much as the sum


def crc32c_of(data: tar.Readable, start: int, end: int) -> int:
    """Of the bytes [start, end), a few megabytes at a time."""
    checksum = 0
    for piece in range(start, end, _CRC_PIECE):
        checksum = google_crc32c.extend(checksum, np.frombuffer(data[piece : min(piece + _CRC_PIECE, end)], np.uint8))
    return checksum


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


def scan(tar_path: str) -> Scan:
    """Index and hash a tar, local or remote, in one pass over its bytes and in bounded memory.

    Groups that are no samples are counted by reason: without a picture, refused by `tar.groups`, or of a key that comes again in the tar (all of them:
    none is known to be the right one). The first few of each reason are named in the log.

    Raises:
        DataError: the tar is missing, cut off, changes while it is read, or has a damaged header.
    """
    with TarStream(tar_path) as data:
        index, left_out = _walked(data, tar_path)
        return Scan(index, left_out, data.sha256())


def index_of(data: tar.Readable, where: str) -> ShardIndex:
    """Index a tar that is in memory; `where` is its name in errors."""
    return _walked(data, where)[0]


def _walked(data: tar.Readable, where: str) -> tuple[ShardIndex, Counter[str]]:
    rows: list[Row] = []
    groups_of, left_out = Counter[str](), Counter[str]()
    for group in tar.groups(data, where):
        groups_of[group.key] += 1
        reason = group.refused or (WITHOUT_IMAGE if tar.image_member(group) is None else None)
        if reason is None:
            rows.append(Row(group.key, group.start, group.end - group.start, _count_captions(data, group, where), crc32c_of(data, group.start, group.end)))
        else:
            _leave_out(left_out, reason, f"{where}: {group.key} at byte {group.start}")
    for row in rows:
        if groups_of[row.key] > 1:  # of interleaved members each part would be half a sample
            _leave_out(left_out, tar.DUPLICATE_KEY, f"{where}: {row.key} at byte {row.offset}, one of {groups_of[row.key]} of this key")
    return from_rows([row for row in rows if groups_of[row.key] == 1], len(data), left_out[WITHOUT_IMAGE]), left_out


def _leave_out(left_out: Counter[str], reason: str, what: str) -> None:
    left_out[reason] += 1
    if reason != WITHOUT_IMAGE and left_out[reason] <= NAMED:
        log.warning("left out (%s): %s", reason, what)


def _count_captions(data: tar.Readable, group: tar.Group, where: str) -> int:
    try:
        metadata = tar.metadata_of(data, group, where)
    except DataError:  # one bad json does not cost the shard: the sample stays an item, and reading it quarantines it by name
        metadata = {}
    return min(len(tar.captions_of(data, group, metadata)), MAX_CAPTIONS)


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
    if not (lengths <= tar.MAX_SAMPLE_BYTES).all() or not (offsets <= tar_bytes - np.minimum(lengths, tar_bytes)).all():
        raise DataError(f"{path}: points outside its tar or at more than a sample may have; make it anew with `albef shards index`")
    return ShardIndex(hashes, offsets, lengths, captions, checksums, tar_bytes, without_image)
