"""Rows of one picture become one: later rows travel to where the first is written."""

import contextlib
import heapq
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ingest.row_counts import SourceCounts
from ingest.spilled_rows import MEMBER, Chunk, SpilledRows, schema

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

RANGES = 64  # the later rows of one range of first rows are in memory at a time
ROWS_AT_A_TIME = 5_000


def as_json(extra: Mapping[str, Any]) -> str:
    """An object with sorted keys, in ASCII, so that any file holds it; what JSON has no word for (a date) becomes text."""
    return json.dumps(extra, sort_keys=True, default=str)


def merge(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One row of several with the same uid, in the order of the lists: captions each once, the first value of each further column, and the first
    place in an archive, which wins over the web."""
    extra: dict[str, Any] = {}
    for row in rows:
        extra = json.loads(row["extra"] or "{}") | extra
    texts = dict.fromkeys(text for row in rows for text in row["captions"])
    place = next((row for row in rows if row["archive"] is not None), rows[0])
    return rows[0] | {"captions": list(texts), "extra": as_json(extra) if extra else None} | {name: place[name] for name in MEMBER}


class LaterRows:
    """Rows that are not their picture's first, on disk by the range of chunks in which the first lies: a 64th of them is in memory at a time, and
    more only where the first rows lie close together, as when one short list comes many times."""

    def __init__(self, rows: SpilledRows, folder: Path) -> None:
        import numpy as np

        folder.mkdir()
        self._folder, self._rows = folder, rows
        self._starts = np.array([chunk.start for chunk in rows], dtype=np.int64)
        self._sources = np.array([chunk.source for chunk in rows], dtype=np.int64)
        self._chunks_per_range = -(-len(rows.chunks) // RANGES)
        self._writers: dict[int, Any] = {}
        self._files = contextlib.ExitStack()
        self._range: _Range | None = None

    def __enter__(self) -> "LaterRows":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._files.close()

    def add(self, chunk: Chunk, distances: "np.ndarray") -> Counter[tuple[int, int]]:
        """Take the later rows of a chunk; returns their number by the positions of the first row's list and their own."""
        import numpy as np
        import pyarrow as pa

        at = np.flatnonzero(distances)
        if not len(at):
            return Counter()
        firsts = chunk.start + at - distances[at]
        chunks_of_firsts = np.searchsorted(self._starts, firsts, side="right") - 1
        table = chunk.read().take(at)
        table = table.append_column("first", pa.array(firsts)).append_column("source", pa.array(np.full(len(at), chunk.source, np.int64)))
        ranges = chunks_of_firsts // self._chunks_per_range
        for number in np.unique(ranges):
            self._writer(int(number), table.schema).write_table(table.filter(pa.array(ranges == number)))
        sources, numbers = np.unique(self._sources[chunks_of_firsts], return_counts=True)
        return Counter({(int(source), chunk.source): int(number) for source, number in zip(sources, numbers, strict=True)})

    def merged(self, chunk: Chunk, distances: "np.ndarray", counts: Sequence[SourceCounts]) -> "pa.Table":
        """The chunk's first rows, each with what later rows add to it; captions are counted with the list that gave them first."""
        import numpy as np
        import pyarrow as pa
        import pyarrow.compute as pc

        self._files.close()  # all are written now
        table = chunk.read()
        firsts_of_later, later = self._later(chunk)
        together = np.unique(firsts_of_later) - chunk.start
        alone = distances == 0
        alone[together] = False
        rest = table.filter(pa.array(alone))
        counts[chunk.source].captions += pc.sum(pc.list_value_length(rest["captions"])).as_py() or 0
        if not len(together):
            return rest
        firsts = ({"first": chunk.start + at, "source": chunk.source} for at in together.tolist())
        first_rows = (named | row for named, row in zip(firsts, _rows(table, together), strict=True))
        in_order = heapq.merge(first_rows, later, key=_first)  # of equals, the first row before the later ones
        merged = [_merge_and_count(list(group), counts) for _, group in groupby(in_order, key=_first)]
        order = np.argsort(np.concatenate([np.flatnonzero(alone), together]))
        return pa.concat_tables([rest, pa.Table.from_pylist(merged, schema=schema())]).take(order)

    def _writer(self, number: int, schema_with_first: "pa.Schema") -> Any:
        import pyarrow as pa

        if number not in self._writers:
            file = self._files.enter_context(pa.OSFile(str(self._folder / f"{number:02d}.arrow"), "wb"))
            self._writers[number] = self._files.enter_context(pa.ipc.new_stream(file, schema_with_first))
        return self._writers[number]

    def _later(self, chunk: Chunk) -> tuple["np.ndarray", Iterator[dict[str, Any]]]:
        """The later rows whose first is in this chunk: the numbers of the first rows, and the rows, sorted by it and then in the order of the lists."""
        import numpy as np

        number = int(np.searchsorted(self._starts, chunk.start)) // self._chunks_per_range
        if self._range is None or self._range.number != number:
            self._range = None  # before the next one is read
            self._range = _Range(number, *self._read_range(number))
        begin, end = np.searchsorted(self._range.firsts, [chunk.start, chunk.stop])
        return self._range.firsts[begin:end], _rows(self._range.table, self._range.order[begin:end])

    def _read_range(self, number: int) -> tuple["pa.Table", "np.ndarray", "np.ndarray"]:
        import numpy as np
        import pyarrow as pa

        path = self._folder / f"{number:02d}.arrow"
        if not path.exists():
            nothing = np.empty(0, np.int64)
            return schema().empty_table(), nothing, nothing
        with pa.OSFile(str(path), "rb") as file:
            table = pa.ipc.open_stream(file).read_all().combine_chunks()
        path.unlink()
        firsts = table["first"].to_numpy()
        order = np.argsort(firsts, kind="stable")  # they were written in the order of the lists
        return table, order, firsts[order]


@dataclass(frozen=True)
class _Range:
    """Later rows of one range as they were written; `order` sorts them by their first row, whose numbers, sorted, are `firsts`."""

    number: int
    table: "pa.Table"
    order: "np.ndarray"
    firsts: "np.ndarray"


def _rows(table: "pa.Table", at: "np.ndarray") -> Iterator[dict[str, Any]]:
    """The rows at these places, in that order; few at a time are Python objects, which take many times the space."""
    for begin in range(0, len(at), ROWS_AT_A_TIME):
        yield from table.take(at[begin : begin + ROWS_AT_A_TIME]).to_pylist()


def _first(row: dict[str, Any]) -> int:
    first: int = row["first"]
    return first


def _merge_and_count(rows: list[dict[str, Any]], counts: Sequence[SourceCounts]) -> dict[str, Any]:
    seen: set[str] = set()
    for row in rows:
        new = set(row["captions"]) - seen
        counts[row["source"]].captions += len(new)
        seen |= new
    return {name: value for name, value in merge(rows).items() if name not in ("first", "source")}
