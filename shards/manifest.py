"""The manifest of a dataset: a shard exists when the manifest lists it.

Manifests are numbered and never change; `MANIFEST` holds the newest number and is written last, so readers never see half a dataset.
"""

import hashlib
import importlib.metadata
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any

from pipeline.core import storage
from pipeline.core.errors import DataError
from shards import layout

_FORMAT = "albef-manifest-1"


@dataclass(frozen=True)
class ShardEntry:
    """One shard: `<name>.tar`, its counts, bytes and sha256, and the source its samples came from.

    `captioned` samples have at least one caption; None in manifests of a version that did not count them.
    """

    name: str
    samples: int
    captions: int
    bytes: int
    sha256: str
    source: str
    captioned: int | None = None


@dataclass(frozen=True)
class Manifest:
    """The shards of a dataset, what became of every input row, and the configuration and version that made it."""

    number: int
    shards: tuple[ShardEntry, ...]
    outcomes: dict[str, int]
    config: dict[str, Any]
    created_by: str

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the sha256 over the shards' names and sha256."""
        return hashlib.sha256("".join(f"{shard.name}\n{shard.sha256}\n" for shard in self.shards).encode()).hexdigest()[:16]

    @property
    def num_samples(self) -> int:
        return sum(shard.samples for shard in self.shards)

    @property
    def num_captions(self) -> int:
        return sum(shard.captions for shard in self.shards)


def newest_number(folder: str) -> int | None:
    """The newest manifest's number; None when nothing was published yet."""
    path = layout.newest_path(folder)
    if not storage.exists(path):
        return None
    text = storage.read_bytes(path).decode("utf-8", "replace").strip()
    if not text.isascii() or not text.isdigit():
        raise DataError(f"{path}: expected the number of a manifest, found {text[:40]!r}; write it anew with `albef shards index`")
    return int(text)


def read_manifest(folder: str, number: int | None = None) -> Manifest:
    """The manifest of that number, or the newest.

    Raises:
        DataError: nothing is published there, or the manifest is missing or damaged.
    """
    if number is None and (number := newest_number(folder)) is None:
        raise DataError(f"{folder}: no dataset here (no MANIFEST); run `albef ingest`, or for a folder of foreign tars `albef shards index {folder}`")
    path = layout.manifest_path(folder, number)
    if not storage.exists(path):
        raise DataError(f"{path}: no such manifest; the newest of {folder} is {newest_number(folder)}")
    try:
        record = json.loads(storage.read_bytes(path))
        if record["format"] != _FORMAT or record["number"] != number:
            raise ValueError(f"format {record['format']!r}, number {record['number']!r}")
        shards = tuple(map(_checked_entry, record["shards"]))
        return Manifest(number, shards, record["outcomes"], record["config"], record["created_by"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a manifest this albef can read ({type(error).__name__}: {error})") from error


def _checked_entry(record: dict[str, Any]) -> ShardEntry:
    """Manifests may come from strangers: text where a count should be is named here, not wherever it is first added up."""
    entry = ShardEntry(**record)
    counts = {"samples": entry.samples, "captions": entry.captions, "bytes": entry.bytes, "captioned": entry.captioned or 0}
    for name, count in counts.items():
        if type(count) is not int or count < 0:
            raise ValueError(f"shard {entry.name!r}: {name} {count!r} is no count")
    for name in ("name", "sha256", "source"):
        if not isinstance(text := getattr(entry, name), str):
            raise ValueError(f"shard {entry.name!r}: {name} {text!r} is no text")
    return entry


def publish(folder: str, entries: Iterable[ShardEntry], outcomes: dict[str, int], config: dict[str, Any]) -> Manifest:
    """Write the next manifest, then point MANIFEST at it; publishing what is already the newest changes nothing.

    The shards and their indexes must be in place. Entries are sorted by name: the same shards give the same fingerprint.
    """
    shards = tuple(sorted(entries, key=lambda shard: shard.name))
    if len({shard.name for shard in shards}) != len(shards):
        raise DataError(f"{folder}: a shard name is there twice; every shard of a dataset has its own name")
    newest = newest_number(folder)
    made = Manifest((newest or 0) + 1, shards, outcomes, json.loads(json.dumps(config, default=str)), f"albef {importlib.metadata.version('albef')}")
    if newest is not None and _content(read_manifest(folder, newest)) == _content(made):
        return read_manifest(folder, newest)
    while storage.exists(layout.manifest_path(folder, made.number)):  # left by a publisher that died before MANIFEST: numbers are never reused
        made = Manifest(made.number + 1, *_content(made))
    record = {"format": _FORMAT, **{field.name: getattr(made, field.name) for field in fields(made)}, "shards": [asdict(shard) for shard in shards]}
    storage.write_bytes(layout.manifest_path(folder, made.number), json.dumps(record, indent=1, sort_keys=True).encode())
    storage.write_bytes(layout.newest_path(folder), f"{made.number}\n".encode())
    return made


def _content(manifest: Manifest) -> tuple[tuple[ShardEntry, ...], dict[str, int], dict[str, Any], str]:
    return manifest.shards, manifest.outcomes, manifest.config, manifest.created_by
