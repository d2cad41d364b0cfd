"""Small parquet tables, on disk and on S3, in one call."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.core import storage

if TYPE_CHECKING:
    import pyarrow as pa


def read_table(path: str, columns: Sequence[str] | None = None) -> "pa.Table":
    """The table, or those of its `columns` that are there.

    Not by `pyarrow.parquet.read_table`: a thread of Arrow's may hold the Python file longer than that call lasts, and of a hundred processes
    that end right after it some are aborted (github.com/apache/arrow/issues/34314).
    """
    import pyarrow.parquet as pq

    with storage.open_read(path) as file:
        return pq.ParquetFile(file).read(columns=columns)
