"""The second pass of a reshard: a new shard out of its stretches of the runs, or of the old tars."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np

from pipeline.core import storage
from pipeline.core.errors import DataError
from shards import index, provenance, rewrite, tar
from shards.manifest import ShardEntry
from shards.reshard.cut import read_cuts
from shards.reshard.request import ROW, Portion, Rows, Work, portions_of, request_of
from shards.reshard.select import PATIENCE_S, Selected, read_selected
from shards.writer import new_shard, renamed

READS_AT_ONCE = 8  # of a shuffled shard, which has a stretch in every run


@dataclass(frozen=True)
class Written:
    """A new shard, and how many of its samples are of which source."""

    entry: ShardEntry
    sources: dict[str, int]


@dataclass(frozen=True)
class Naming:
    """Names of the new shards, and with `rename` of their samples: `00012` and `000120345`, as img2dataset counts."""

    rename: bool
    shard_digits: int
    row_digits: int

    def shard(self, number: int) -> str:
        return f"{number:0{self.shard_digits}d}"

    def key(self, shard: str, row: int) -> str:
        return f"{shard}{row:0{self.row_digits}d}"


def write(job: tuple[Work, Naming, int]) -> Written:
    """Write one shard with its index and its provenance, then the note that it is complete; the same bytes however often it is done."""
    return storage.patiently(lambda: _written(*job), PATIENCE_S)


def _written(work: Work, naming: Naming, number: int) -> Written:
    name = naming.shard(number)
    columns = defaultdict[str, list[Any]](list)
    with new_shard(work.out, name) as shard:
        for place, (portion, row, sample) in enumerate(_samples(work, number)):
            where = f"{portion.tar} row {int(row['row'])}"
            original = next(tar.groups(sample, where, whole=False)).key
            key, key_hash, checksum = original, int(row["key_hash"]), int(row["crc32c"])
            data: bytes | memoryview = sample
            if naming.rename:
                key = naming.key(name, place)
                data = renamed(sample, key, where)
                key_hash, checksum = index.key_hash(key), index.crc32c(data)
            shard.add(data, key_hash, int(row["captions"]), checksum)
            facts = (key, _selected(work, portion).sources[int(row["source"])], portion.folder, portion.shard, int(row["row"]), original)
            for column, fact in zip(provenance.COLUMNS, facts, strict=True):
                columns[column].append(fact)
    provenance.write(work.out, name, columns)
    sources = dict(sorted(Counter(columns["source"]).items()))
    written = Written(shard.entry("+".join(sources)), sources)
    storage.write_bytes(work.path("written", f"{name}.json"), json.dumps(asdict(written)).encode())
    return written


def read_written(work: Work, name: str) -> Written:
    record = json.loads(storage.read_bytes(work.path("written", f"{name}.json")))
    return Written(ShardEntry(**record["entry"]), record["sources"])


def _samples(work: Work, shard: int) -> Iterator[tuple[Portion, np.void, memoryview]]:
    """The samples of a new shard in their order, each held against its checksum."""
    portions = portions_of(work)
    starts, stops = read_cuts(work, len(portions), shard)
    touched = [(portions[number], int(starts[number]), int(stops[number])) for number in np.flatnonzero(stops > starts).tolist()]
    found = _shuffled(work, touched) if request_of(work).shuffle is not None else _as_they_lie(work, touched)
    for portion, row, sample in found:
        if (damaged := rewrite.damage(portion.tar, int(row["row"]), sample, int(row["crc32c"]))) is not None:
            raise DataError(f"{damaged}; then remove {work.folder} and begin again")
        yield portion, row, sample


def _as_they_lie(work: Work, touched: list[tuple[Portion, int, int]]) -> Iterator[tuple[Portion, np.void, memoryview]]:
    for portion, start, stop in touched:
        rows = _rows(work, portion, start, stop)
        for row, sample in zip(rows, rewrite.read_samples(portion.tar, rows["offset"], rows["length"], portion.tar_bytes), strict=True):
            yield portion, row, sample


def _shuffled(work: Work, touched: list[tuple[Portion, int, int]]) -> Iterator[tuple[Portion, np.void, memoryview]]:
    """All stretches are in memory at once: as much as the new shard is long."""

    def read(part: tuple[Portion, int, int]) -> tuple[Portion, Rows, list[memoryview]]:
        portion, start, stop = part
        rows = _rows(work, portion, start, stop)
        return portion, rows, list(rewrite.read_samples(work.run_path(portion), rows["offset"], rows["length"], _selected(work, portion).bytes))

    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        parts = list(pool.map(read, touched))
    orders = np.concatenate([rows["order"] for _, rows, _ in parts])
    part_of = np.repeat(np.arange(len(parts)), [len(rows) for _, rows, _ in parts])
    row_of = np.concatenate([np.arange(len(rows)) for _, rows, _ in parts])
    for place in np.argsort(orders).tolist():
        portion, rows, samples = parts[part_of[place]]
        yield portion, rows[row_of[place]], samples[row_of[place]]


def _rows(work: Work, portion: Portion, start: int, stop: int) -> Rows:
    total = _selected(work, portion).kept * ROW.itemsize
    return np.frombuffer(rewrite.read_range(work.rows_path(portion), start * ROW.itemsize, stop * ROW.itemsize, total), ROW)


@cache  # some counts of each portion, read once by each worker
def _selected(work: Work, portion: Portion) -> Selected:
    return read_selected(work, portion)
