"""Parquet lists: one column of URLs, one of captions (strings or lists of strings)."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ingest.pair import Row, row_of
from ingest.sources.listed import NamedColumns
from pipeline.core import storage
from pipeline.core.errors import DataError

if TYPE_CHECKING:
    import pyarrow

BATCH_ROWS = 10_000


class Parquet(NamedColumns):
    """A parquet table."""

    type: Literal["parquet"] = Field(description="parquet table")

    def rows(self) -> Iterator[Row]:
        import pyarrow
        import pyarrow.parquet as pq

        wanted = self.wanted()
        with storage.open_read(self.path) as file:
            try:
                table = pq.ParquetFile(file)
            except pyarrow.ArrowInvalid as error:
                raise DataError(f"{self.path}: not a parquet file ({' '.join(str(error).split())})") from error
            for key, column in wanted.items():
                if column not in table.schema_arrow.names:
                    raise DataError(f"{self.path}: no column {column!r} (setting {key} of the source); its columns: {', '.join(table.schema_arrow.names)}")
            for name, column in self.columns.items():
                if not _fits_json(table.schema_arrow.field(column).type):
                    kind = table.schema_arrow.field(column).type
                    raise DataError(
                        f"{self.path}: column {column!r} (setting columns.{name} of the source) is {kind}, which JSON cannot hold; make it text or numbers"
                    )
            first = 1
            for batch in table.iter_batches(batch_size=BATCH_ROWS, columns=list(dict.fromkeys(wanted.values()))):
                values = [batch.column(column).to_pylist() for column in wanted.values()]
                for number, (url, caption, *further) in enumerate(zip(*values, strict=True), start=first):
                    yield row_of(number, url, caption, dict(zip(self.columns, further, strict=True)))
                first += len(batch)


def _fits_json(kind: "pyarrow.DataType") -> bool:
    from pyarrow import types

    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _fits_json(kind.value_type)
    if types.is_struct(kind):
        return all(_fits_json(field.type) for field in kind)
    return any(fits(kind) for fits in (types.is_string, types.is_large_string, types.is_integer, types.is_floating, types.is_boolean, types.is_null))
