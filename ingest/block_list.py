"""Pictures that nobody wants in the dataset: by URL, uid, SHA-256 of their bytes, or perceptual hash."""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ingest.urls import normalise, picture_uid
from pipeline.core import storage
from pipeline.core.errors import DataError

KINDS = ("url", "uid", "sha256", "phash")
DIGITS = {32: "uid", 64: "sha256", 16: "phash"}
HEXADECIMAL = re.compile(r"[0-9a-f]+")
NEAR_BITS = 4  # a re-encode or a resize moves fewer of the 64
ENTRY_SHOWN = 80  # characters

Phashes = np.ndarray[Any, np.dtype[np.uint64]]


@dataclass(frozen=True)
class Match:
    """What of the list a picture meets: the kind of the entry and the entry itself, a URL in its normal spelling."""

    kind: str
    entry: str


@dataclass(frozen=True)
class BlockList:
    """Sets of bytes, 49 or 65 bytes an entry with Python's own, and a sorted array."""

    url_uids: frozenset[bytes] = frozenset()
    uids: frozenset[bytes] = frozenset()
    sha256: frozenset[bytes] = frozenset()
    phashes: Phashes = field(default_factory=lambda: np.empty(0, np.uint64))

    def __len__(self) -> int:
        return len(self.url_uids) + len(self.uids) + len(self.sha256) + len(self.phashes)

    def of_address(self, uid: str, url: str) -> Match | None:
        """What is known before the picture is fetched."""
        key = bytes.fromhex(uid) if len(uid) == 32 and HEXADECIMAL.fullmatch(uid) else b""  # another tool's uid may be anything
        if key in self.uids:
            return Match("uid", uid)
        if self.url_uids and (key in self.url_uids or bytes.fromhex(picture_uid(normalise(url) or url)) in self.url_uids):
            return Match("url", normalise(url) or url)
        return None

    def of_content(self, sha256: str | None, phash: str | None) -> Match | None:
        """What is known once its bytes are here."""
        if sha256 and HEXADECIMAL.fullmatch(sha256) and bytes.fromhex(sha256) in self.sha256:
            return Match("sha256", sha256)
        if phash and (near := nearest(self.phashes, phash)) is not None:
            return Match("phash", near)
        return None


def nearest(known: Phashes, phash: str, radius: int = NEAR_BITS) -> str | None:
    """The hash nearest to one of 16 hex digits, if within `radius` bits; a millisecond for a million."""
    if not len(known):
        return None
    distances = np.bitwise_count(known ^ np.uint64(int(phash, 16)))
    best = int(distances.argmin())
    return f"{int(known[best]):016x}" if distances[best] <= radius else None


def read(paths: Sequence[str]) -> BlockList:
    """All lists together.

    Raises:
        DataError: a list is missing, or a line of it is nothing that can be blocked.
    """
    found: dict[str, set[str]] = {kind: set() for kind in KINDS}
    for path in paths:
        for line, entry in entries(path):
            kind, value = _kind_of(entry) or _refuse(path, line, entry)
            found[kind].add(value)
    hexes = {kind: frozenset(map(bytes.fromhex, map(picture_uid, values) if kind == "url" else values)) for kind, values in found.items() if kind != "phash"}
    return BlockList(hexes["url"], hexes["uid"], hexes["sha256"], np.array(sorted(int(digits, 16) for digits in found["phash"]), np.uint64))


def entries(path: str) -> Iterator[tuple[int, str]]:
    """The entries of a list with the numbers of their lines: of a parquet the one column or that of a known name, of a csv the first, else whole lines."""
    lines = _of_parquet(path) if path.endswith(".parquet") else _of_text(path)
    for number, line in enumerate(lines, start=1):
        entry = line.strip()
        if entry and not entry.startswith("#") and not (number == 1 and entry.lower() in (*KINDS, "id")):  # a header
            yield number, entry


def _of_text(path: str) -> Iterator[str]:
    with storage.open_read(path) as file, io.TextIOWrapper(file, "utf-8-sig", errors="replace", newline="") as text:
        if path.endswith(".csv"):
            yield from (row[0] if row else "" for row in csv.reader(text))
        else:
            yield from text


def _of_parquet(path: str) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with storage.open_read(path) as source:
        try:
            file = pq.ParquetFile(source)
        except pa.ArrowInvalid as error:
            raise DataError(f"{path}: not a parquet file ({error}); a list may also be plain text, one entry a line") from error
        names = file.schema_arrow.names
        known = [name for name in names if name in (*KINDS, "id")] or names
        if len(known) != 1:
            raise DataError(f"{path}: has columns {', '.join(names)}; expected one column, or one of the names {', '.join(KINDS)}, id")
        for batch in file.iter_batches(columns=known):
            yield from (str(value) if value is not None else "" for value in batch.column(0).to_pylist())


def _kind_of(entry: str) -> tuple[str, str] | None:
    lower = entry.lower()
    if len(lower) in DIGITS and HEXADECIMAL.fullmatch(lower):
        return DIGITS[len(lower)], lower
    url = normalise(entry)
    return ("url", url) if url is not None else None


def _refuse(path: str, line: int, entry: str) -> tuple[str, str]:
    kinds = "a URL, a uid (32 hex digits), a sha256 (64) or a phash (16)"
    raise DataError(f"{path} line {line}: {entry[:ENTRY_SHOWN]!r} is nothing that can be blocked; expected {kinds}")
