"""Where the parts of a dataset lie.

<folder>/<name>.tar              the samples, plain WebDataset
<root>/index/<name>.albef        where each sample of the tar lies (root = the folder, or a place of its own for a read-only dataset)
<root>/indexed/<name>.json       what `albef shards index` found in a tar of that size and version: one that did not change is not read again
<root>/provenance/<name>.parquet where each sample came from, in datasets that `albef shards reshard` wrote
<root>/manifests/00001.json      which shards exist; numbered and immutable
<root>/MANIFEST                  the newest number, written last
"""

from pipeline.core import storage
from pipeline.core.errors import DataError


def tar_path(folder: str, name: str) -> str:
    return storage.join(folder, f"{_checked(name)}.tar")


def index_path(root: str, name: str) -> str:
    return storage.join(root, "index", f"{_checked(name)}.albef")


def indexed_path(root: str, name: str) -> str:
    return storage.join(root, "indexed", f"{_checked(name)}.json")


def provenance_path(root: str, name: str) -> str:
    return storage.join(root, "provenance", f"{_checked(name)}.parquet")


def manifest_path(root: str, number: int) -> str:
    return storage.join(root, "manifests", f"{number:05d}.json")


def newest_path(root: str) -> str:
    return storage.join(root, "MANIFEST")


def _checked(name: str) -> str:
    if not name or "/" in name or "\\" in name or name.startswith("."):  # names come from manifests, which may come from strangers
        raise DataError(f"shard name {name!r}: expected a plain file name without its .tar; write the manifest anew with `albef shards index`")
    return name
