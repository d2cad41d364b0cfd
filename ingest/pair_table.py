"""The pair table: one row a picture with all its captions, so that no picture is fetched twice and no row of a list is lost.

uid       32 hex digits of the SHA-256 of the normalised URL: the same picture has it in every list, order and machine
url       normalised
captions  those of all rows with this URL, in order, each once
source    the list that named the picture first
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from ingest.config import SourceConfig
from ingest.pair import Pair, RejectedRow
from ingest.sources import SOURCES
from pipeline.core import storage
from pipeline.core.errors import AlbefError, DataError

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 10_000
HOST = re.compile(r"[a-z0-9._:%-]+")  # after IDNA encoding; the colon is of IPv6 addresses, the percent sign of their zones


@dataclass(frozen=True)
class RowCounts:
    """Where the rows of the lists went: `rows` = `pictures` + `merged` + the sum of `rejected`."""

    rows: int
    pictures: int
    merged: int
    captions: int
    rejected: dict[str, int]

    def check(self) -> None:
        """Raises AlbefError when a row was lost or counted twice."""
        accounted = self.pictures + self.merged + sum(self.rejected.values())
        if accounted != self.rows:
            raise AlbefError(f"pair table: {self.rows} rows came in, {accounted} are accounted for: {asdict(self)}")


@dataclass
class _Picture:
    url: str
    captions: dict[str, None]  # an ordered set
    source: str


def normalise(url: str) -> str | None:
    """The one spelling of a URL (scheme and host in lower case, default port and fragment gone, percent-encoded), or None when it is none."""
    from yarl import URL

    try:
        parsed = URL(url.strip()).with_fragment(None)
        if parsed.scheme not in ("http", "https") or not HOST.fullmatch(parsed.raw_host or ""):
            return None
        parts = urlsplit(str(parsed.with_port(None) if parsed.is_default_port() else parsed))
        return urlunsplit(parts._replace(path=parts.path or "/"))
    except (ValueError, TypeError):
        return None


def picture_uid(url: str) -> str:
    return hashlib.sha256(url.encode()).hexdigest()[:32]


def build(sources: Iterable[SourceConfig], table_path: str, rejected_path: str) -> RowCounts:
    """Read the lists and write the pair table and, beside it, the table of rejected rows (source, row, reason, text).

    A URL that cannot be parsed keeps its row as it is: fetching will end it as `bad_url`.

    Raises:
        DataError: a list is missing, unreadable or without a usable row.
    """
    pictures: dict[str, _Picture] = {}
    rejected: list[dict[str, Any]] = []
    rows = merged = 0
    for source in sources:
        for row in SOURCES[source.type](source):
            rows += 1
            if isinstance(row, RejectedRow):
                rejected.append({"source": source.label, **asdict(row)})
            else:
                merged += _add(pictures, row, source.label)
    written = _write(pictures, table_path)
    counts = RowCounts(rows, written, merged, sum(len(picture.captions) for picture in pictures.values()), dict(Counter(row["reason"] for row in rejected)))
    counts.check()
    if not pictures:
        reasons = ", ".join(f"{reason} {number}" for reason, number in counts.rejected.items()) or "it is empty"
        raise DataError(f"{', '.join(source.path for source in sources)}: no row with a URL and a caption among {rows} rows ({reasons})")
    _write_rejected(rejected, rejected_path)
    return counts


def _add(pictures: dict[str, _Picture], pair: Pair, source: str) -> bool:
    """Whether the row was merged into an earlier one."""
    url = normalise(pair.url) or pair.url.strip()
    uid = picture_uid(url)
    known = pictures.get(uid)
    if known is None:
        pictures[uid] = _Picture(url, dict.fromkeys(pair.captions), source)
        return False
    known.captions.update(dict.fromkeys(pair.captions))
    return True


def _table_schema() -> "pa.Schema":
    import pyarrow as pa

    return pa.schema([("uid", pa.string()), ("url", pa.string()), ("captions", pa.list_(pa.string())), ("source", pa.string())])


def _write(pictures: dict[str, _Picture], path: str) -> int:
    """Write the table in batches; returns the number of rows written."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _table_schema()
    written = 0
    with storage.atomic_write(path) as file, pq.ParquetWriter(file, schema) as writer:
        for batch in _batches(pictures):
            writer.write_table(pa.Table.from_pylist(batch, schema=schema))
            written += len(batch)
    return written


def _batches(pictures: dict[str, _Picture]) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    for uid, picture in pictures.items():
        batch.append({"uid": uid, "url": picture.url, "captions": list(picture.captions), "source": picture.source})
        if len(batch) == BATCH_ROWS:
            yield batch
            batch = []
    yield batch


def _write_rejected(rejected: list[dict[str, Any]], path: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([("source", pa.string()), ("row", pa.int64()), ("reason", pa.string()), ("text", pa.string())])
    with storage.atomic_write(path) as file:
        pq.write_table(pa.Table.from_pylist(rejected, schema=schema), file)
