"""What of a shard stands in the dataset folder: its tar with index, and, written last, its outcome table, which says that the shard is done.

<output>/outcomes/<shard>.parquet    a row for every row of the pair table the shard covers; the schema's metadata holds the shard's entry
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ingest import outcomes
from pipeline.core import parquet, storage
from pipeline.core.errors import DataError
from shards import layout
from shards.manifest import ShardEntry

if TYPE_CHECKING:
    import pyarrow as pa

METADATA_KEY = b"albef_shard"


@dataclass(frozen=True)
class PublishedShard:
    """`entry` is None when the shard holds no sample: then it has no tar. A purge gives its tar another name; that of the outcome table stays."""

    name: str
    rows: int
    outcomes: dict[str, int]
    entry: ShardEntry | None


def outcome_path(output: str, name: str) -> str:
    return storage.join(output, "outcomes", f"{name}.parquet")


def write(output: str, name: str, rows: Sequence[dict[str, Any]], entry: ShardEntry | None) -> PublishedShard:
    """Write the outcome table; the shard counts as done from here on."""
    import pyarrow.parquet as pq

    shard = PublishedShard(name, len(rows), dict(sorted(Counter(str(row["outcome"]) for row in rows).items())), entry)
    table = outcomes.table(rows).replace_schema_metadata({METADATA_KEY: json.dumps(asdict(shard)).encode()})
    with storage.atomic_write(outcome_path(output, name)) as file:
        pq.write_table(table, file)
    return shard


def read(output: str, name: str) -> PublishedShard:
    """Raises DataError when the table is damaged or not ours."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = outcome_path(output, name)
    try:
        with storage.open_read(path) as file:
            record = json.loads(pq.read_schema(file).metadata[METADATA_KEY])
    except (pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: not an outcome table of ingest ({type(error).__name__}); remove it and run again to fetch its shard anew") from error
    entry = ShardEntry(**record["entry"]) if record["entry"] else None
    return PublishedShard(record["name"], record["rows"], record["outcomes"], entry)


def rows(output: str, name: str, columns: list[str] | None = None) -> "pa.Table":
    """The outcome table of a shard; a column that older versions did not write is null."""
    import pyarrow as pa

    found = parquet.read_table(outcome_path(output, name), columns)
    for field in outcomes.schema():
        if field.name not in found.column_names and (columns is None or field.name in columns):
            found = found.append_column(field, pa.nulls(found.num_rows, field.type))
    return found


def is_done(output: str, name: str) -> bool:
    """Whether the shard stands whole in the dataset folder."""
    return storage.exists(outcome_path(output, name)) and is_whole(output, read(output, name))


def rest_name(table: str, purge: int) -> str:
    """What the tar is called when a purge has taken samples out of it."""
    return f"{table}-{purge}"


def table_of(shard: str) -> str:
    """The name of the outcome table of a shard that a manifest lists."""
    return shard.split("-", 1)[0]


def names(output: str) -> list[str]:
    found = storage.list_files(storage.join(output, "outcomes"))
    return [name.removesuffix(".parquet") for name in found if name.endswith(".parquet") and not name.startswith(".")]


def is_whole(output: str, shard: PublishedShard) -> bool:
    """Whether the tar and the index that the outcome table speaks of are there, the tar with its size; `albef shards verify` hashes them."""
    if shard.entry is None:
        return True
    tar = layout.tar_path(output, shard.entry.name)
    return storage.exists(tar) and storage.size(tar) == shard.entry.bytes and storage.exists(layout.index_path(output, shard.entry.name))
