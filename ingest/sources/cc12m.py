"""Conceptual 12M as Google ships it: cc12m.tsv, and the table of hashes its pictures had."""

import logging
from array import array
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Literal

import numpy as np
from pydantic import Field

from ingest.pair import Pair, Row
from ingest.sources.reading import lines
from ingest.sources.source import Source
from ingest.sources.tsv import tab_separated
from pipeline.core.errors import DataError

log = logging.getLogger(__name__)

SHA256_BYTES = 32
BATCH_ROWS = 10_000


class Conceptual12M(Source):
    """Lines of `url<TAB>caption`, without a header; quotes and `<PERSON>` stay as they are."""

    type: Literal["cc12m"] = Field(description="Conceptual 12M: cc12m.tsv")
    hashes: str | None = Field(
        default=None, description="its table of hashes (url, SHA-256 and MD5 by tabs): adds published_sha256, so that changed pictures can be told"
    )

    PLACES = Source.PLACES | {"hashes"}

    def rows(self) -> Iterator[Row]:
        rows = tab_separated(enumerate(lines(self.path), start=1), fields=2, url=0, caption=1)
        return rows if self.hashes is None else _with_hashes(rows, PublishedHashes(self.hashes))

    def list_files(self) -> list[str]:
        return [self.path] if self.hashes is None else [self.path, self.hashes]


class PublishedHashes:
    """12 million SHA-256 by URL in 48 bytes each (a dict of strings would take 4 GB): sorted keys beside an array of hashes.

    The key is Python's 64-bit hash of the URL; that any two of 12 million URLs share one happens in 1 of 200,000 runs.
    """

    def __init__(self, path: str) -> None:
        keys, digests, unusable = array("q"), bytearray(), 0
        for line in lines(path):
            try:
                url, sha256, _ = line.split(b"\t", 2)
                digest = bytes.fromhex(sha256.decode("ascii"))
            except ValueError:
                unusable += 1
                continue
            if len(digest) == SHA256_BYTES:
                keys.append(hash(url))
                digests += digest
            else:
                unusable += 1
        if not keys:
            raise DataError(f"{path}: no line with a URL, a SHA-256 in hex and an MD5 between tabs")
        if unusable:
            log.warning("%s: %d of %d lines have no SHA-256; their pictures count as unknown", path, unusable, unusable + len(keys))
        self._digests = np.frombuffer(digests, dtype=np.uint8).reshape(-1, SHA256_BYTES)
        unsorted = np.frombuffer(keys, dtype=np.int64)
        self._order = np.argsort(unsorted, kind="stable").astype(np.uint32)  # stable: of a URL listed twice, the first counts
        self._keys = unsorted[self._order]

    def of(self, urls: list[str]) -> list[str | None]:
        """The hash of each URL in hex, None where there is none. In batches: looked up one by one they would take as long as all else."""
        wanted = np.fromiter((hash(url.encode()) for url in urls), dtype=np.int64, count=len(urls))
        at = np.searchsorted(self._keys, wanted).clip(max=len(self._keys) - 1)
        found = self._keys[at] == wanted
        digests = self._digests[self._order[at]].tobytes().hex()
        width = 2 * SHA256_BYTES
        return [digests[n * width : (n + 1) * width] if known else None for n, known in enumerate(found.tolist())]


def _with_hashes(rows: Iterator[Row], published: PublishedHashes) -> Iterator[Row]:
    while batch := list(islice(rows, BATCH_ROWS)):
        hashes = iter(published.of([row.url for row in batch if isinstance(row, Pair)]))
        for row in batch:
            sha256 = next(hashes) if isinstance(row, Pair) else None
            yield replace(row, extra={"published_sha256": sha256}) if isinstance(row, Pair) and sha256 else row
