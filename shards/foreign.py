"""Turn a folder of tars that somebody else wrote into a dataset: an index beside each, and a manifest."""

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator

from pipeline.core import storage
from pipeline.core.errors import DataError
from shards import index, layout
from shards.manifest import Manifest, ShardEntry, newest_number, publish, read_manifest

log = logging.getLogger(__name__)

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
    known = {shard.name: shard for shard in newest.shards} if newest else {}
    entries, left_out = [], Counter[str]()
    for name in tar_names(folder):
        path = layout.tar_path(folder, name)
        found = index.scan(path)
        if newest and name in known and known[name].sha256 != found.sha256:
            log.warning("%s: not the bytes manifest %d has; indexed as it is now", path, newest.number)
        index.write_index(layout.index_path(root, name), found.index)
        left_out += found.left_out
        source = known[name].source if name in known else folder
        entries.append(ShardEntry(name, len(found.index), int(found.index.captions.sum()), found.index.tar_bytes, found.sha256, source, found.index.captioned))
        on_shard()
    outcomes = {"success": sum(entry.samples for entry in entries), index.WITHOUT_IMAGE: left_out[index.WITHOUT_IMAGE], **left_out}
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
