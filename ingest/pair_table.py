"""The pair table: one row a picture with all its captions, so that no picture is fetched twice and no row of a list is lost.

uid       32 hex digits of the SHA-256 of the normalised URL: the same picture has it in every list, order and machine
url       normalised
captions  those of all rows with this URL, in order, each once
source    the list that named the picture first
extra     further columns as a JSON object with sorted keys, or null: those of all rows with this URL, the first value of each
archive, offset, size, deflated, crc32
          where the picture lies in an archive, or null: then it is fetched; an archive wins over the web

A folder of parquet files, since img2dataset's Reader loads a file whole. Memory stays bounded whatever the number of rows: they are spilled
in order, duplicates are found by partitions of their hashes, and rows that are merged into an earlier one go to where that one is written.
"""

import contextlib
import errno
import gc
import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ingest import captions, filters, merging, repeated_captions
from ingest.config import FilterConfig
from ingest.hash_groups import HashGroups
from ingest.pair import Member, Pair, RejectedRow, Row
from ingest.parts import Parts
from ingest.rejected_rows import RejectedRows, rejected_rows
from ingest.row_counts import RowCounts, SourceCounts
from ingest.spilled_rows import CHUNK_ROWS, MEMBER, SpilledRows, schema
from ingest.urls import normalise, uid_bytes
from pipeline.core import storage
from pipeline.core.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

log = logging.getLogger(__name__)

LOG_ROWS = 500_000
COLUMNS = ("uid", "url", "captions", "source", "extra", *MEMBER)


class Source(Protocol):
    """A list: what its samples are called, and its rows."""

    @property
    def label(self) -> str: ...

    def rows(self) -> Iterator[Row]: ...


def member_of(row: dict[str, Any]) -> Member | None:
    """Where the picture of a row of the table lies, or None when it is to be fetched."""
    return Member(**{name: row[name] for name in MEMBER}) if row["archive"] is not None else None


def build(
    sources: Sequence[Source],
    asked: FilterConfig,
    samples_per_shard: int,
    table: str,
    rejected: str,
    scratch: Path,
    between: Callable[[], None] = lambda: None,
) -> RowCounts:
    """Read the lists and write the pair table into the folder `table` and the rows that are not in it to the file `rejected`.

    Each file of the table but the last has a multiple of `samples_per_shard` rows. What lies under `table` and `scratch` of an earlier attempt is
    removed; whole is the table when this returns, which the caller notes. `scratch`, a local folder, takes about as many bytes as the lists and
    100 a row. `between` is called every now and then, and may raise to stop.

    A URL that cannot be parsed keeps its row as it is: fetching will end it as `bad_url`.

    Raises:
        DataError: a list is missing, unreadable or without a usable row; a filter asks for a column that no list has; the disk is full.
    """
    labels, counts = [source.label for source in sources], [SourceCounts() for _ in sources]
    storage.remove_tree(table)
    try:
        with _emptied(scratch), rejected_rows(rejected, labels, counts) as rejects:
            rows = SpilledRows(scratch / "rows")
            reading = _Reading(asked, rows, rejects, between)
            for position, source in enumerate(sources):
                counts[position].rows = reading.read(position, source)
            reading.check_columns()
            if asked.captions.max_repeats is not None:
                rows = repeated_captions.dropped(rows, asked.captions.max_repeats, scratch, rejects, between)
            _refuse_empty(labels, counts, rows)
            log.info("pair table: %d rows to be freed of duplicates and written", rows.count)
            distances = _distances(rows, scratch, between)
            overlap = _write(rows, distances, labels, counts, Parts(table, samples_per_shard), scratch, between)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise DataError(f"{scratch} or {table}: the disk is full; the pair table needs about three times the size of the lists") from error
    whole = RowCounts.of_sources(labels, counts, overlap)
    whole.check()
    return whole


@contextlib.contextmanager
def _emptied(folder: Path) -> Iterator[None]:
    """A folder that is empty when the block begins and gone when it ends."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _refuse_empty(labels: Sequence[str], counts: Sequence[SourceCounts], rows: SpilledRows) -> None:
    if not rows.count:
        reasons: Counter[str] = sum((Counter(one.rejected) for one in counts), Counter())
        told = ", ".join(f"{reason} {number}" for reason, number in reasons.items()) or "it is empty"
        raise DataError(f"{', '.join(labels)}: no row with a URL and a caption among {sum(one.rows for one in counts)} rows ({told})")


class _Reading:
    """Rows of the lists through normalisation and filters, into chunks on disk or to the rejected rows."""

    def __init__(self, asked: FilterConfig, rows: SpilledRows, rejected: RejectedRows, between: Callable[[], None]) -> None:
        self.asked, self.rows, self.rejected, self.between = asked, rows, rejected, between
        self.filters_captions = filters.limits_anything(asked.captions)
        self.columns_seen: set[str] = set()

    def read(self, position: int, source: Source) -> int:
        """The number of rows the list gave."""
        read, given = 0, source.rows()
        with _without_looking_for_cycles():
            while batch := list(islice(given, CHUNK_ROWS)):
                self.between()
                self.rows.append(position, _as_table(self._kept(position, read, batch)))
                read += len(batch)
                if read % LOG_ROWS < len(batch):
                    log.info("pair table: %s, %d rows read", source.label, read)
                del batch  # before the next is made
                gc.collect(1)
        return read

    def check_columns(self) -> None:
        """Raises DataError when a filter asks for a column that no row has: it is misspelled, or the lists are not told to bring it."""
        for asked in self.asked.columns:
            if asked.column not in self.columns_seen:
                known = ", ".join(sorted(self.columns_seen)) or "none"
                raise DataError(f"ingest.filters.columns: no row of the lists has a column {asked.column!r}; further columns they bring: {known}")

    def _kept(self, position: int, read: int, batch: Sequence[Row]) -> list[tuple[Any, ...]]:
        kept = []
        for number, row in enumerate(batch, start=read + 1):
            if isinstance(row, RejectedRow):
                self.rejected.add(position, row.row, row.reason, row.text)
            elif (prepared := self._prepared(position, number, row)) is not None:
                kept.append(prepared)
        return kept

    def _prepared(self, position: int, number: int, pair: Pair) -> tuple[Any, ...] | None:
        """The row as the chunks have it, or None when it was rejected."""
        number = pair.row or number
        extra = filters.present(pair.extra) if pair.extra else {}
        if self.asked.columns:
            self.columns_seen.update(extra)
            if reason := filters.of_columns(extra, self.asked.columns):
                self.rejected.add(position, number, reason, f"{pair.url}: {extra}")
                return None
        texts = self._kept_captions(position, number, pair)
        if not texts:
            return None
        url = normalise(pair.url) or pair.url.strip()
        return number, uid_bytes(url), url, texts, merging.as_json(extra) if extra else None, pair.member

    def _kept_captions(self, position: int, number: int, pair: Pair) -> list[str]:
        """Each once, in order; a row that has none left is rejected for the first one's reason."""
        texts = dict.fromkeys(map(captions.normalise, pair.captions))
        if not self.filters_captions and "" not in texts:
            return list(texts)
        reasons = {text: filters.of_caption(text, self.asked.captions) for text in texts}
        kept = [text for text, reason in reasons.items() if reason is None]
        if not kept:
            text, reason = next(iter(reasons.items()))
            self.rejected.add(position, number, str(reason), text or pair.url)
        for reason in filter(None, reasons.values() if kept else ()):
            self.rejected.drop_captions(position, reason, 1)
        return kept


@contextlib.contextmanager
def _without_looking_for_cycles() -> Iterator[None]:
    """Millions of new objects set off Python's collector again and again; there are no cycles to find, and it would take 40 % of the time."""
    collected = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collected:
            gc.enable()


def _as_table(prepared: Sequence[tuple[Any, ...]]) -> "pa.Table":
    import pyarrow as pa

    numbers, uids, urls, texts, extras, members = zip(*prepared, strict=True) if prepared else ((),) * 6
    columns: dict[str, Sequence[Any]] = {"row": numbers, "uid": uids, "url": urls, "captions": texts, "extra": extras}
    in_archives = any(members)
    for name in MEMBER:
        columns[name] = [getattr(member, name) if member else None for member in members] if in_archives else [None] * len(members)
    return pa.table({field.name: pa.array(columns[field.name], field.type) for field in schema()}, schema=schema())


def _distances(rows: SpilledRows, scratch: Path, between: Callable[[], None]) -> "np.ndarray":
    """For each row, how many rows before it the first one with its uid stands; 0: it is the first. On disk, 8 bytes a row, mostly a hole."""
    import numpy as np

    distances = np.memmap(scratch / "distances", dtype=np.int64, mode="w+", shape=(rows.count,))
    with HashGroups(scratch / "uids") as groups:
        for chunk in rows:
            between()
            groups.add(chunk.read()["uid"].combine_chunks().buffers()[1].to_pybytes())
        for numbers, firsts, _ in groups.groups():
            later = numbers != firsts
            distances[numbers[later]] = numbers[later] - firsts[later]
    return distances


def _write(
    rows: SpilledRows,
    distances: "np.ndarray",
    labels: Sequence[str],
    counts: Sequence[SourceCounts],
    parts: Parts,
    scratch: Path,
    between: Callable[[], None],
) -> Counter[tuple[int, int]]:
    """Write the table in the order of first appearance; returns how many rows were merged, by the positions of the first list and the later one."""
    overlap: Counter[tuple[int, int]] = Counter()
    with merging.LaterRows(rows, scratch / "later") as later:
        for chunk in rows:
            between()
            overlap += later.add(chunk, distances[chunk.start : chunk.stop])
        for (_, source), number in overlap.items():
            counts[source].merged += number
        with parts:
            for chunk in rows:
                between()
                table = later.merged(chunk, distances[chunk.start : chunk.stop], counts)
                counts[chunk.source].pictures += table.num_rows
                parts.write(_as_written(table, labels[chunk.source]))
                chunk.path.unlink()
    return overlap


def _as_written(table: "pa.Table", label: str) -> "pa.Table":
    """The table's columns: the uid in hex, the list by its name."""
    import numpy as np
    import pyarrow as pa

    hexes = b"".join(table["uid"].to_pylist()).hex().encode()
    ends = np.arange(table.num_rows + 1, dtype=np.int32) * (len(hexes) // max(table.num_rows, 1))
    uids = pa.StringArray.from_buffers(table.num_rows, pa.py_buffer(ends), pa.py_buffer(hexes))
    columns = {"uid": uids, "source": pa.array([label] * table.num_rows, pa.string())}
    return pa.table({name: columns[name] if name in columns else table[name] for name in COLUMNS})
