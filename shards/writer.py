"""Write a shard: the same samples always give the same tar bytes; tar, checksums and index come out of one pass."""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from pipeline.core import storage
from pipeline.core.errors import DataError
from shards import index, layout, tar
from shards.manifest import ShardEntry


@dataclass(frozen=True)
class SampleToWrite:
    """A picture (its encoded bytes and suffix) with its captions and whatever else is known of it."""

    key: str
    image: bytes
    extension: str
    captions: tuple[str, ...]
    metadata: dict[str, Any] = field(default_factory=dict)


def write_shard(path: str, samples: Iterable[SampleToWrite], source: str = "", index_root: str | None = None) -> ShardEntry:
    """Write `<folder>/<name>.tar` and its index, whole or not at all, in the order given.

    Raises:
        DataError: a key or suffix that cannot be a sample's, or a key that is there twice.
    """
    folder, _, file_name = path.rpartition("/")
    name = file_name.removesuffix(".tar")
    rows: list[index.Row] = []
    digest, position, seen = hashlib.sha256(), 0, set[str]()
    with storage.atomic_write(path) as file:
        for sample in samples:
            if sample.key in seen:
                raise DataError(f"{path}: key {sample.key!r} is there twice; every sample of a shard has its own key")
            seen.add(sample.key)
            data = sample_bytes(sample, path)
            captions = sum(bool(caption.strip()) for caption in sample.captions)
            rows.append(index.Row(sample.key, position, len(data), captions, index.crc32c(data)))
            file.write(data)
            digest.update(data)
            position += len(data)
        end = bytes(2 * tar.BLOCK + -(position + 2 * tar.BLOCK) % tarfile.RECORDSIZE)
        file.write(end)
        digest.update(end)
    built = index.from_rows(rows, position + len(end))
    index.write_index(layout.index_path(index_root or folder or ".", name), built)
    return ShardEntry(name, len(rows), sum(row.captions for row in rows), built.tar_bytes, digest.hexdigest(), source)


def sample_bytes(sample: SampleToWrite, where: str) -> bytes:
    """The members `<key>.<extension>`, `<key>.txt` (the first caption) and `<key>.json` (all captions and the metadata), as a tar holds them."""
    if not sample.key or "." in sample.key or sample.key.startswith(("/", "__")):
        raise DataError(f"{where}: key {sample.key!r} cannot name a sample; WebDataset cuts keys at the first dot")
    if sample.extension not in tar.IMAGE_SUFFIXES:
        raise DataError(f"{where}: {sample.key}.{sample.extension}: expected one of {', '.join(tar.IMAGE_SUFFIXES)}")
    metadata = json.dumps({**sample.metadata, "captions": list(sample.captions)}, sort_keys=True, ensure_ascii=False)
    members = ((sample.extension, sample.image), ("txt", _utf8(sample.captions[0] if sample.captions else "")), ("json", _utf8(metadata)))
    buffer = io.BytesIO()
    for suffix, data in members:
        buffer.write(_header(f"{sample.key}.{suffix}", len(data), where))
        buffer.write(data)
        buffer.write(bytes(-len(data) % tar.BLOCK))
    return buffer.getvalue()


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "replace")  # lists from the web hold halves of surrogate pairs


def _header(name: str, size: int, where: str) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.uname, info.gname = size, 0o444, "bigdata", "bigdata"  # time and ids stay 0: bytes depend on the samples alone
    try:
        return info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "surrogateescape")
    except ValueError as error:
        raise DataError(f"{where}: {name!r} does not fit a tar header ({error}); use a shorter key") from error
