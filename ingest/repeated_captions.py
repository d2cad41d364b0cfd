"""Captions that too many rows have, such as the name of a shop: they say nothing about a picture, and are found only with all lists at hand."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ingest.filters import REPEATED
from ingest.hash_groups import HASH_BYTES, HashGroups
from ingest.rejected_rows import RejectedRows
from ingest.spilled_rows import Chunk, SpilledRows

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa


def dropped(rows: SpilledRows, max_repeats: int, scratch: Path, rejected: RejectedRows, between: Callable[[], None]) -> SpilledRows:
    """The rows without the captions that more than `max_repeats` rows have; a row that has no other is rejected. The count is exact. A row has a
    caption once. Takes the chunks away as it goes, so that the rows lie on disk once."""
    repeated = _repeated(rows, max_repeats, scratch, between)
    kept, position = SpilledRows(scratch / "rows_without_repeats"), 0
    for chunk in rows:
        between()
        table = chunk.read()
        captions = len(table["captions"].combine_chunks().flatten())
        marks = repeated[position : position + captions]
        kept.append(chunk.source, _without(table, marks, chunk, rejected) if marks.any() else table)
        chunk.path.unlink()
        position += captions
    return kept


def _repeated(rows: SpilledRows, max_repeats: int, scratch: Path, between: Callable[[], None]) -> "np.ndarray":
    """Of all captions, one after the other: whether more than `max_repeats` are the same. A byte a caption in memory."""
    import numpy as np

    total = 0
    with HashGroups(scratch / "captions") as groups:
        for chunk in rows:
            between()
            captions = chunk.read()["captions"].combine_chunks().flatten().to_pylist()
            groups.add(b"".join([hashlib.sha256(caption.encode()).digest()[:HASH_BYTES] for caption in captions]))
            total += len(captions)
        repeated = np.zeros(total, dtype=bool)
        for numbers, _, sizes in groups.groups():
            repeated[numbers[sizes > max_repeats]] = True
    return repeated


def _without(table: "pa.Table", marks: "np.ndarray", chunk: Chunk, rejected: RejectedRows) -> "pa.Table":
    import pyarrow as pa

    captions, position = table["captions"].to_pylist(), 0
    keep, kept_captions = [], []
    for number, texts in zip(table["row"].to_pylist(), captions, strict=True):
        kept = [text for text, mark in zip(texts, marks[position : position + len(texts)], strict=True) if not mark]
        position += len(texts)
        keep.append(bool(kept))
        if not kept:
            rejected.add(chunk.source, number, REPEATED, texts[0])
            continue
        kept_captions.append(kept)
        rejected.drop_captions(chunk.source, REPEATED, len(texts) - len(kept))
    column: Any = pa.array(kept_captions, table.schema.field("captions").type)
    return table.filter(pa.array(keep)).set_column(table.schema.get_field_index("captions"), "captions", column)
