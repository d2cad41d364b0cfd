"""The rows that the lists gave, on their way to the pair table: on disk, in order, in chunks that fit into memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ingest.hash_groups import HASH_BYTES

if TYPE_CHECKING:
    import pyarrow as pa

CHUNK_ROWS = 50_000
# Of an archive's member, the fields of `pair.Member` as columns of the table; all null when the picture is to be fetched.
MEMBER = {"archive": "string", "offset": "int64", "size": "int64", "deflated": "bool", "crc32": "int64"}


def schema() -> "pa.Schema":
    """`row` counts from 1 in the list, `uid` is still in bytes; the rest is as in the pair table."""
    import pyarrow as pa

    fields = [("row", pa.int64()), ("uid", pa.binary(HASH_BYTES)), ("url", pa.string()), ("captions", pa.list_(pa.string())), ("extra", pa.string())]
    return pa.schema(fields + [(name, pa.type_for_alias(kind)) for name, kind in MEMBER.items()])


@dataclass(frozen=True)
class Chunk:
    """Rows `start` to `stop` of all, from the list at position `source`."""

    path: Path
    source: int
    start: int
    stop: int

    def read(self) -> "pa.Table":
        """Mapped, not loaded: what is not looked at costs nothing."""
        import pyarrow as pa

        with pa.memory_map(str(self.path)) as file:
            return pa.ipc.open_file(file).read_all()


class SpilledRows:
    """Chunks in the order they were appended; the rows of all are numbered through, from 0."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.chunks: list[Chunk] = []

    def __iter__(self) -> Iterator[Chunk]:
        return iter(self.chunks)

    @property
    def count(self) -> int:
        return self.chunks[-1].stop if self.chunks else 0

    def append(self, source: int, table: "pa.Table") -> None:
        """One chunk; a table without rows is none."""
        import pyarrow as pa

        if not table.num_rows:
            return
        chunk = Chunk(self.folder / f"{len(self.chunks):06d}.arrow", source, self.count, self.count + table.num_rows)
        with pa.OSFile(str(chunk.path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        self.chunks.append(chunk)
