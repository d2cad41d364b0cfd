"""Parquet lists: one column of URLs, one of captions (strings or lists of strings)."""

from collections.abc import Iterator

from ingest.config import SourceConfig
from ingest.pair import Row, row_of
from pipeline.core import storage
from pipeline.core.errors import DataError

BATCH_ROWS = 10_000


def read(options: SourceConfig) -> Iterator[Row]:
    """The rows in the file's order.

    Raises:
        DataError: the file is missing or no parquet, or has not the columns.
    """
    import pyarrow
    import pyarrow.parquet as pq

    with storage.open_read(options.path) as file:
        try:
            table = pq.ParquetFile(file)
        except pyarrow.ArrowInvalid as error:
            raise DataError(f"{options.path}: not a parquet file ({' '.join(str(error).split())})") from error
        for key, column in (("url", options.url), ("caption", options.caption)):
            if column not in table.schema_arrow.names:
                raise DataError(f"{options.path}: no column {column!r} (setting {key} of the source); its columns: {', '.join(table.schema_arrow.names)}")
        first = 1
        for batch in table.iter_batches(batch_size=BATCH_ROWS, columns=[str(options.url), str(options.caption)]):
            urls, captions = batch.column(str(options.url)).to_pylist(), batch.column(str(options.caption)).to_pylist()
            for number, (url, caption) in enumerate(zip(urls, captions, strict=True), start=first):
                yield row_of(number, url, caption)
            first += len(batch)
