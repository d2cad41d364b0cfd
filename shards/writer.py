"""Write a shard: the same samples always give the same tar bytes; tar, checksums and index come out of one pass."""

import contextlib
import hashlib
import json
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np

from pipeline.core import storage
from pipeline.core.errors import DataError
from shards import index, layout, tar
from shards.manifest import ShardEntry

END_MARK = 2 * tar.BLOCK  # bytes of zeros, after which a tar is filled up to whole records


@dataclass(frozen=True)
class SampleToWrite:
    """A picture (its encoded bytes and suffix) with its captions and whatever else is known of it."""

    key: str
    image: bytes
    extension: str
    captions: tuple[str, ...]
    metadata: dict[str, Any] = field(default_factory=dict)


class ShardWriter:
    """A shard being written: samples go in as a tar holds them; sha256 and index come out of the same pass."""

    def __init__(self, name: str, file: IO[bytes]) -> None:
        self.name = name
        self._file, self._digest, self._bytes = file, hashlib.sha256(), 0
        self._rows: list[tuple[int, int, int, int, int]] = []

    def add(self, sample: bytes | memoryview, key_hash: int, captions: int, crc32c: int) -> None:
        """Append a sample's members, headers and padding included."""
        self._rows.append((key_hash, self._bytes, len(sample), captions, crc32c))
        self._write(sample)

    def finish(self) -> None:
        self._write(bytes(tar_bytes(self._bytes) - self._bytes))

    def index(self) -> index.ShardIndex:
        columns = zip(*self._rows, strict=True) if self._rows else [()] * 5
        kinds = (np.uint64, np.uint64, np.uint64, np.uint16, np.uint32)
        hashes, offsets, lengths, captions, checksums = (np.array(column, dtype=kind) for column, kind in zip(columns, kinds, strict=True))
        return index.ShardIndex(hashes, offsets, lengths, captions, checksums, self._bytes)

    def entry(self, source: str) -> ShardEntry:
        captions = [row[3] for row in self._rows]
        captioned = sum(count > 0 for count in captions)
        return ShardEntry(self.name, len(captions), sum(captions), self._bytes, self._digest.hexdigest(), source, captioned)

    def _write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._digest.update(data)
        self._bytes += len(data)


def tar_bytes(samples: int) -> int:
    """Bytes of the tar whose samples have that many bytes together."""
    return samples + END_MARK + -(samples + END_MARK) % tarfile.RECORDSIZE


@contextlib.contextmanager
def new_shard(folder: str, name: str, index_root: str | None = None) -> Iterator[ShardWriter]:
    """`<folder>/<name>.tar` and its index, whole or not at all: both are there when the block ends without an error."""
    with storage.atomic_write(layout.tar_path(folder, name)) as file:
        shard = ShardWriter(name, file)
        yield shard
        shard.finish()
    index.write_index(layout.index_path(index_root or folder, name), shard.index())


def write_shard(path: str, samples: Iterable[SampleToWrite], source: str = "", index_root: str | None = None) -> ShardEntry:
    """Write `<folder>/<name>.tar` and its index, whole or not at all, in the order given.

    Raises:
        DataError: a key or suffix that cannot be a sample's, or a key that is there twice.
    """
    folder, _, file_name = path.rpartition("/")
    seen = set[str]()
    with new_shard(folder or ".", file_name.removesuffix(".tar"), index_root) as shard:
        for sample in samples:
            if sample.key in seen:
                raise DataError(f"{path}: key {sample.key!r} is there twice; every sample of a shard has its own key")
            seen.add(sample.key)
            data = sample_bytes(sample, path)
            captions = sum(bool(caption.strip()) for caption in sample.captions)
            shard.add(data, index.key_hash(sample.key), captions, index.crc32c(data))
    return shard.entry(source)


def sample_bytes(sample: SampleToWrite, where: str) -> bytes:
    """The members `<key>.<extension>`, `<key>.txt` (the first caption) and `<key>.json` (all captions and the metadata), as a tar holds them."""
    if not sample.key or "." in sample.key or sample.key.startswith(("/", "__")):
        raise DataError(f"{where}: key {sample.key!r} cannot name a sample; WebDataset cuts keys at the first dot")
    if sample.extension not in tar.IMAGE_SUFFIXES:
        raise DataError(f"{where}: {sample.key}.{sample.extension}: expected one of {', '.join(tar.IMAGE_SUFFIXES)}")
    metadata = json.dumps({**sample.metadata, "captions": list(sample.captions)}, sort_keys=True, ensure_ascii=False)
    members = ((sample.extension, sample.image), ("txt", _utf8(sample.captions[0] if sample.captions else "")), ("json", _utf8(metadata)))
    return b"".join(member_bytes(f"{sample.key}.{suffix}", data, where) for suffix, data in members)


def renamed(sample: memoryview, key: str, where: str) -> bytes:
    """The same files under another key; what is no regular file stays behind."""
    group = next(tar.groups(sample, where, whole=False))
    return b"".join(member_bytes(f"{key}.{suffix}", sample[one.data : one.data + one.size], where) for suffix, one in group.members.items())


def member_bytes(name: str, data: bytes | memoryview, where: str) -> bytes:
    """A file as a tar holds it: header, data, padding."""
    return b"".join((_header(name, len(data), where), data, bytes(-len(data) % tar.BLOCK)))


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "replace")  # lists from the web hold halves of surrogate pairs


def _header(name: str, size: int, where: str) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.uname, info.gname = size, 0o444, "bigdata", "bigdata"  # time and ids stay 0: bytes depend on the samples alone
    try:
        return info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "surrogateescape")
    except ValueError as error:
        raise DataError(f"{where}: {name!r} does not fit a tar header ({error}); use a shorter key") from error
