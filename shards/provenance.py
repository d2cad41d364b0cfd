"""Where each sample of a resharded dataset came from: a table beside each shard, a row a sample in the order of the tar.

Columns: `key`, `source` (of its list or dataset), `dataset` (folder), `shard` and `row` there, `original_key`.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.core import parquet, storage
from shards import layout

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = ("key", "source", "dataset", "shard", "row", "original_key")


def write(root: str, name: str, rows: dict[str, list[Any]]) -> None:
    """`rows` by column."""
    import pyarrow as pa

    schema = pa.schema([(column, pa.uint32() if column == "row" else pa.string()) for column in COLUMNS])
    _write(layout.provenance_path(root, name), pa.table([rows[column] for column in COLUMNS], schema=schema))


def shards(root: str) -> frozenset[str]:
    """Names of the shards that have such a table."""
    names = storage.list_files(storage.join(root, "provenance"))
    return frozenset(name.removesuffix(".parquet") for name in names if name.endswith(".parquet") and not name.startswith("."))


def sources(root: str, name: str) -> list[str] | None:
    """The source of each sample of a shard; None when the shard has no such table: then all are of the source its manifest names."""
    path = layout.provenance_path(root, name)
    if not storage.exists(path):
        return None
    found: list[str] = parquet.read_table(path, ["source"])["source"].to_pylist()
    return found


def copy_rows(root: str, name: str, new: str, kept: npt.NDArray[np.bool_]) -> None:
    """The table of a shard's copy that has only some of its samples."""
    import pyarrow as pa

    path = layout.provenance_path(root, name)
    if storage.exists(path):
        _write(layout.provenance_path(root, new), parquet.read_table(path).filter(pa.array(kept)))


def _write(path: str, table: "pa.Table") -> None:
    import pyarrow.parquet as pq

    with storage.atomic_write(path) as file:
        pq.write_table(table, file, compression="zstd")
