"""A table as a folder of parquet files of bounded size, whose rows are whole shards."""

import contextlib
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pipeline.core import storage

if TYPE_CHECKING:
    import pyarrow as pa

PART_ROWS = 300_000  # at most, unless one shard has more: some 100 MB in memory, which img2dataset's Reader loads at a time
TEXT_COLUMNS_THAT_REPEAT = ["source", "archive"]  # the others cost time as a dictionary and save nothing


class Parts:
    """Tables in, `000000.parquet`, `000001.parquet`, ... out; each file but the last has the same multiple of `samples_per_shard` rows, since the
    Reader begins a new shard with each file."""

    def __init__(self, folder: str, samples_per_shard: int) -> None:
        self.folder = folder
        self.rows_per_part = max(PART_ROWS // samples_per_shard, 1) * samples_per_shard
        self._number = self._rows = 0
        self._writer: Any = None
        self._open = contextlib.ExitStack()

    def __enter__(self) -> "Parts":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._open.__exit__(kind, error, trace)  # an error in the block takes the open part back

    def write(self, table: "pa.Table") -> None:
        while table.num_rows:
            now = table.slice(0, self.rows_per_part - self._rows)
            self._part(table.schema).write_table(now)
            self._rows += now.num_rows
            table = table.slice(now.num_rows)
            if self._rows == self.rows_per_part:
                self._open.close()
                self._writer, self._rows = None, 0

    def _part(self, schema: "pa.Schema") -> Any:
        import pyarrow.parquet as pq

        if self._writer is None:
            file = self._open.enter_context(storage.atomic_write(storage.join(self.folder, f"{self._number:06d}.parquet")))
            self._writer = self._open.enter_context(pq.ParquetWriter(file, schema, use_dictionary=TEXT_COLUMNS_THAT_REPEAT))
            self._number += 1
        return self._writer
