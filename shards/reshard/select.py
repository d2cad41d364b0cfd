"""The first pass of a reshard: which samples of a portion are kept, and when they are shuffled, their bytes in the new order.

A portion's run is sorted by the samples' random numbers, so each new shard is one stretch of every run: the shuffle of the whole is one
sequential read of the inputs, one write and one read of the runs, whatever the number of samples.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np

from pipeline.core import storage
from pipeline.core.errors import DataError
from shards import index, layout, provenance, random_stream, rewrite, tar
from shards.remote.transport import DEADLINES
from shards.reshard.conditions import Condition, SampleFacts
from shards.reshard.request import ROW, Portion, Request, Rows, Work, request_of

DAMAGED = "damaged"
PATIENCE_S = DEADLINES.patience_s  # a portion or a shard is begun again when the storage did not answer, unless it took longer than this


@dataclass(frozen=True)
class Selected:
    """What became of a portion: the samples kept with their bytes, and how many were left out by reason; damaged ones by name.

    `sources` are the names that the rows' `source` counts through.
    """

    portion: int
    sources: tuple[str, ...]
    kept: int
    bytes: int
    left_out: dict[str, int]
    damaged: tuple[str, ...]


def select(job: tuple[Work, Portion, bool]) -> Selected:
    """Choose and write down the rows, then the counts; the same however often it is done. `job` ends with whether damaged samples are left out.

    Raises DataError when a sample is damaged, unless those are left out.
    """
    return storage.patiently(lambda: _selected(*job), PATIENCE_S)


def _selected(work: Work, portion: Portion, skip_damaged: bool) -> Selected:
    request = request_of(work)
    rows = _rows_of(request, portion, index.read_index(layout.index_path(portion.root, portion.shard)))
    known = provenance.sources(portion.root, portion.shard)
    sources = tuple(sorted(set(known))) if known else (portion.source,)
    if known:
        rows["source"] = [sources.index(known[row]) for row in rows["row"].tolist()]
    left_out, damaged = Counter[str](), list[str]()
    if request.where or request.shuffle is not None:
        rows, left_out, damaged = _read(work, request, portion, rows, sources)
    if damaged and not skip_damaged:
        raise DataError(f"{damaged[0]}; or leave damaged samples out with --skip-damaged")
    storage.write_bytes(work.rows_path(portion), rows.tobytes())
    selected = Selected(portion.number, sources, len(rows), int(rows["length"].sum()), dict(sorted(left_out.items())), tuple(damaged))
    storage.write_bytes(work.counts_path(portion), json.dumps(asdict(selected)).encode())
    return selected


def read_selected(work: Work, portion: Portion) -> Selected:
    record = json.loads(storage.read_bytes(work.counts_path(portion)))
    return Selected(**record | {"damaged": tuple(record["damaged"]), "sources": tuple(record["sources"])})


def _rows_of(request: Request, portion: Portion, shard: index.ShardIndex) -> Rows:
    numbers = np.arange(portion.start, portion.start + portion.stop - portion.first, dtype=np.uint64)
    rows = np.zeros(len(numbers), ROW)
    for column in ("offset", "length", "key_hash", "crc32c", "captions"):
        rows[column] = getattr(shard, column)[portion.first : portion.stop]
    rows["row"] = np.arange(portion.first, portion.stop)
    rows["order"] = numbers if request.shuffle is None else random_stream.item_keys(request.shuffle, 0, numbers)  # a bijection: no two are alike
    return rows


def _read(work: Work, request: Request, portion: Portion, rows: Rows, sources: tuple[str, ...]) -> tuple[Rows, Counter[str], list[str]]:
    """The rows kept, sorted by their order and, when they are shuffled, their bytes written so."""
    left_out, damaged = Counter[str](), list[str]()
    kept: dict[int, memoryview] = {}
    for number, (sample, reason, message) in enumerate(_judged(request, portion, rows, sources)):
        if reason is None:
            kept[number] = sample if request.shuffle is not None else memoryview(b"")
        else:
            left_out[reason] += 1
        if message is not None:
            damaged.append(message)
    chosen = np.array(sorted(kept, key=lambda number: int(rows["order"][number])), np.int64)
    rows = rows[chosen]
    if request.shuffle is not None:
        rows["offset"] = np.cumsum(rows["length"]) - rows["length"]
        with storage.atomic_write(work.run_path(portion)) as run:
            for number in chosen.tolist():
                run.write(kept[number])
    return rows, left_out, damaged


def _judged(request: Request, portion: Portion, rows: Rows, sources: tuple[str, ...]) -> Iterator[tuple[memoryview, str | None, str | None]]:
    """Every sample with the reason to leave it out, and the message when that is damage."""
    conditions = [Condition(text) for text in request.where]
    for row, sample in zip(rows, rewrite.read_samples(portion.tar, rows["offset"], rows["length"], portion.tar_bytes), strict=True):
        number = int(row["row"])
        message = rewrite.damage(portion.tar, number, sample, int(row["crc32c"]))
        if message is not None:
            yield sample, DAMAGED, message
            continue
        reason = None
        if conditions:
            where = f"{portion.tar} row {number}"
            facts = SampleFacts(sample, next(tar.groups(sample, where, whole=False)), sources[int(row["source"])], where)
            reason = next((reason for condition in conditions if (reason := condition(facts)) is not None), None)
        yield sample, reason, None
