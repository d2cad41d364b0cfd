"""The table of rows that did not become pictures: source, row, reason, and the text that was found."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ingest.pair import TEXT_LIMIT
from ingest.row_counts import SourceCounts
from pipeline.core import storage

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 10_000


class RejectedRows:
    """Written in batches, never held; each row is counted where its list's other rows are."""

    def __init__(self, writer: Any, schema: "pa.Schema", labels: Sequence[str], counts: Sequence[SourceCounts]) -> None:
        self._writer, self._schema, self._labels, self._counts = writer, schema, labels, counts
        self._batch: list[dict[str, Any]] = []

    def add(self, source: int, row: int, reason: str, text: str) -> None:
        """`source` is the position of the list, `row` counts from 1 in it."""
        counts = self._counts[source].rejected
        counts[reason] = counts.get(reason, 0) + 1
        text = text[:TEXT_LIMIT].encode("utf-8", "replace").decode()  # JSON can spell half a surrogate pair, which no file in UTF-8 can hold
        self._batch.append({"source": self._labels[source], "row": row, "reason": reason, "text": text})
        if len(self._batch) == BATCH_ROWS:
            self.flush()

    def drop_captions(self, source: int, reason: str, number: int) -> None:
        """Captions of a row that keeps others are counted; the row is not rejected."""
        if number:
            counts = self._counts[source].dropped_captions
            counts[reason] = counts.get(reason, 0) + number

    def flush(self) -> None:
        import pyarrow as pa

        self._writer.write_table(pa.Table.from_pylist(self._batch, schema=self._schema))
        self._batch.clear()


@contextlib.contextmanager
def rejected_rows(path: str, labels: Sequence[str], counts: Sequence[SourceCounts]) -> Iterator[RejectedRows]:
    """The table appears under `path` when the block ends without an error."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    _remove_leftovers(path)
    schema = pa.schema([("source", pa.string()), ("row", pa.int64()), ("reason", pa.string()), ("text", pa.string())])
    with storage.atomic_write(path) as file, pq.ParquetWriter(file, schema) as writer:
        rows = RejectedRows(writer, schema, labels, counts)
        yield rows
        rows.flush()


def _remove_leftovers(path: str) -> None:
    """What a killed build had begun to write beside its place."""
    folder, _, name = path.rpartition("/")
    for found in storage.list_files(folder or "."):
        if found.startswith(f".{name}.") and found.endswith(".tmp"):
            storage.remove(storage.join(folder or ".", found))
