"""Rows and pictures that must not come into the dataset: those of the block lists, and those that a benchmark holds out (decontamination).

A Flickr30k picture is known by the number of its photo on Flickr, a COCO picture by its COCO id, wherever a list names it so, and by their URLs;
a copy of either by its perceptual hash.
"""

import functools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from ingest import block_list
from ingest.block_list import BlockList, Phashes
from ingest.config import HeldOutConfig, IngestConfig
from ingest.outcomes import Ended, Outcome
from pipeline.core.errors import DataError
from shards.annotations.karpathy import read_karpathy

NAMESPACES = ("coco", "flickr")
ID = re.compile(r"(coco|flickr):(\d{1,18})")
PHASH = re.compile(r"[0-9a-f]{16}")
COCO_URL = re.compile(r"https?://(?:s3\.amazonaws\.com/)?[^/]*\b(?:ms)?coco(?:dataset)?\.org/.*?(?:COCO_\w+?2014_|2017/)0*(\d{1,12})\.jpg", re.IGNORECASE)
FLICKR_URL = re.compile(r"https?://[^/]*\bstatic\.?flickr\.com/(?:[^?]*/)?(\d{1,18})_[0-9a-f]+(?:_\w+)?\.\w+", re.IGNORECASE)

Id = tuple[str, int]  # namespace and number


@dataclass(frozen=True)
class Screen:
    """Each question costs a look-up in a set, those about looks a millisecond for a million hashes."""

    blocked: BlockList
    held_out: frozenset[Id]
    held_out_phashes: Phashes
    radius: int

    def check_row(self, row: dict[str, Any]) -> None:
        """Of the pair table, before it is fetched.

        Raises:
            Ended: `blocked_by_list` or `held_out`.
        """
        if match := self.blocked.of_address(row["uid"], row["url"]):
            raise Ended(Outcome.BLOCKED_BY_LIST, f"{match.kind} {match.entry}")
        if self.held_out:
            for namespace, number in ids_of(row["url"], json.loads(row["extra"]) if row["extra"] else {}):
                if (namespace, number) in self.held_out:
                    raise Ended(Outcome.HELD_OUT, f"{namespace}:{number}")

    def check_bytes(self, sha256: str) -> None:
        """Before they are decoded. Raises Ended."""
        if match := self.blocked.of_content(sha256, None):
            raise Ended(Outcome.BLOCKED_BY_LIST, f"{match.kind} {match.entry}")

    def check_looks(self, phash: str) -> None:
        """Raises Ended."""
        if match := self.blocked.of_content(None, phash):
            raise Ended(Outcome.BLOCKED_BY_LIST, f"{match.kind} {match.entry}")
        if (near := block_list.nearest(self.held_out_phashes, phash, self.radius)) is not None:
            raise Ended(Outcome.HELD_OUT, f"phash {near}, this has {phash}")


def read(config: IngestConfig) -> Screen:
    """Read the lists.

    Raises:
        DataError: one is missing or holds what cannot be used.
    """
    section = config.held_out
    return Screen(block_list.read(config.blocked), frozenset(_held_out_ids(section)), _phashes(section), section.radius)


def read_once(config: IngestConfig) -> Screen:
    """The same for a worker, which fetches shard after shard."""
    return _read_once(config.model_dump_json())


@functools.lru_cache(maxsize=1)
def _read_once(config: str) -> Screen:
    return read(IngestConfig.model_validate_json(config))


def ids_of(url: str, extra: dict[str, Any]) -> set[Id]:
    """What a row is called elsewhere, by its further columns and its URL."""
    found = {(namespace, int(extra[f"{namespace}_id"])) for namespace in NAMESPACES if str(extra.get(f"{namespace}_id", "")).isdecimal()}
    if "coco" in url and (match := COCO_URL.match(url)):
        found.add(("coco", int(match[1])))
    if "flickr" in url and (match := FLICKR_URL.match(url)):
        found.add(("flickr", int(match[1])))
    return found


def _held_out_ids(section: HeldOutConfig) -> Iterator[Id]:
    for path in section.annotations:
        for image in read_karpathy(path, *section.splits):
            name = PurePosixPath(image.path).name
            stem = name.split(".", 1)[0]
            if image.coco_id is not None:
                yield "coco", image.coco_id
            elif stem.isdecimal():  # Flickr30k's files are called by the photo's number
                yield "flickr", int(stem)
            else:
                raise DataError(
                    f"{path}: image {name!r} has neither a cocoid nor a name that is a number of Flickr; give its phash in held_out.phashes instead"
                )
    for path in section.ids:
        for line, entry in block_list.entries(path):
            found = ID.fullmatch(entry.lower())
            if found is None:
                raise DataError(f"{path} line {line}: expected coco:<number> or flickr:<number>, found {entry[: block_list.ENTRY_SHOWN]!r}")
            yield found[1], int(found[2])


def _phashes(section: HeldOutConfig) -> Phashes:
    found = set()
    for path in section.phashes:
        for line, entry in block_list.entries(path):
            if not PHASH.fullmatch(entry.lower()):
                raise DataError(f"{path} line {line}: expected the 16 hex digits of a phash, found {entry[: block_list.ENTRY_SHOWN]!r}")
            found.add(int(entry, 16))
    return np.array(sorted(found), np.uint64)
