"""Turn a folder of tars that somebody else wrote into a dataset: an index beside each, and a manifest."""

import hashlib
from collections.abc import Callable, Iterator

from pipeline.core import storage
from pipeline.core.errors import DataError
from shards import index, layout
from shards.manifest import Manifest, ShardEntry, newest_number, publish, read_manifest

_PIECE_BYTES = 16 * 2**20


def tar_names(folder: str) -> list[str]:
    """Names of the tars directly in a folder, without `.tar`.

    Raises DataError when there is none.
    """
    names = [name.removesuffix(".tar") for name in storage.list_files(folder) if name.endswith(".tar") and not name.startswith(".")]
    if not names:
        raise DataError(f"{folder}: no .tar files here; give the folder that holds the shards themselves")
    return names


def index_folder(folder: str, index_root: str | None = None, on_shard: Callable[[], None] = lambda: None) -> Manifest:
    """Index every tar of the folder and publish them; `on_shard` is called after each. The tars stay as they are.

    Raises:
        DataError: a tar is damaged; nothing is published then.
    """
    root = index_root or folder
    newest = read_manifest(root) if newest_number(root) is not None else None
    sources = {shard.name: shard.source for shard in newest.shards} if newest else {}
    entries, without_image = [], 0
    for name in tar_names(folder):
        path = layout.tar_path(folder, name)
        one = index.build_index(path)
        index.write_index(layout.index_path(root, name), one)
        without_image += one.without_image
        entries.append(ShardEntry(name, len(one), int(one.captions.sum()), one.tar_bytes, sha256_of(path), sources.get(name, folder)))
        on_shard()
    outcomes = {"success": sum(entry.samples for entry in entries), "without_image": without_image}
    return publish(root, entries, outcomes, newest.config if newest else {"indexed": folder})


def sha256_of(path: str) -> str:
    """sha256 of a file, read in pieces."""
    digest = hashlib.sha256()
    for piece in _pieces(path):
        digest.update(piece)
    return digest.hexdigest()


def _pieces(path: str) -> Iterator[bytes]:
    total = storage.size(path)
    for start in range(0, total, _PIECE_BYTES):
        yield storage.read_range(path, start, min(start + _PIECE_BYTES, total))
