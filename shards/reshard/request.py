"""What a reshard is asked to do, and the folder that holds its work until the new dataset is published.

<out>/reshard/request.json          what is asked; another request does not go on from here
<out>/reshard/portions.json         the inputs, cut into portions of half a gigabyte
<out>/reshard/selected/<n>.rows     the samples kept of portion n, in the order they get; <n>.json, written after it, how many were left out and why
<out>/reshard/runs/<n>              their bytes in that order, when they are shuffled
<out>/reshard/cuts                  for each new shard where it begins in each portion's rows
<out>/reshard/written/<name>.json   a new shard that is complete: its entry, and its samples by source
"""

import functools
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from pipeline.core import storage
from shards import index, layout
from shards.manifest import Manifest

PORTION_BYTES = 512 * 2**20  # what a worker that shuffles holds in memory
REQUESTS_AT_ONCE = 16

T = TypeVar("T")
R = TypeVar("R")

ROW = np.dtype(
    [("order", "<u8"), ("offset", "<u8"), ("length", "<u8"), ("key_hash", "<u8"), ("crc32c", "<u4"), ("captions", "<u2"), ("source", "<u2"), ("row", "<u4")]
)  # `order`: the new dataset is sorted by it; `offset`: in the run when shuffled, else in the tar; `row`: of the old shard; `source`: of its Selected.sources

Rows = npt.NDArray[np.void]


@dataclass(frozen=True)
class Input:
    """A dataset to take samples from, pinned; `root` is where its index and manifests lie."""

    folder: str
    root: str
    manifest: int
    fingerprint: str


@dataclass(frozen=True)
class Request:
    """`shuffle` is the seed of a global shuffle; without one the samples stay in the order of the inputs."""

    inputs: tuple[Input, ...]
    where: tuple[str, ...] = ()
    shuffle: int | None = None
    samples_per_shard: int = 10_000
    bytes_per_shard: int | None = None
    rename_keys: bool = False

    def as_json(self) -> dict[str, Any]:
        record: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return record

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Request":
        return cls(**record | {"inputs": tuple(Input(**one) for one in record["inputs"]), "where": tuple(record["where"])})


@dataclass(frozen=True)
class Portion:
    """Rows [first, stop) of a shard of an input, `bytes` of its `tar_bytes`; `start` is the number of the first among all samples of all inputs."""

    number: int
    folder: str
    root: str
    shard: str
    first: int
    stop: int
    start: int
    bytes: int
    tar_bytes: int
    source: str

    @property
    def tar(self) -> str:
        return layout.tar_path(self.folder, self.shard)


@dataclass(frozen=True)
class Work:
    """The places of the work of one reshard; `runs` may lie elsewhere than the rest, which is small. `request` is its fingerprint."""

    out: str
    runs: str
    request: str

    @property
    def folder(self) -> str:
        return storage.join(self.out, "reshard")

    def path(self, *parts: str) -> str:
        return storage.join(self.folder, *parts)

    def rows_path(self, portion: Portion) -> str:
        return self.path("selected", f"{portion.number:06d}.rows")

    def counts_path(self, portion: Portion) -> str:
        return self.path("selected", f"{portion.number:06d}.json")

    def run_path(self, portion: Portion) -> str:
        return storage.join(self.runs, f"{portion.number:06d}")

    def rows(self, portion: Portion) -> Rows:
        """The samples kept of a portion."""
        return np.frombuffer(storage.read_bytes(self.rows_path(portion)), ROW)

    def done(self, folder: str) -> set[str]:
        """Names, without .json, of what is complete in `selected` or `written`."""
        names = storage.list_files(self.path(folder))
        return {name.removesuffix(".json") for name in names if name.endswith(".json") and not name.startswith(".")}


@functools.cache
def request_of(work: Work) -> Request:
    return Request.from_json(json.loads(storage.read_bytes(work.path("request.json"))))


@functools.cache  # once a worker, not once a shard
def portions_of(work: Work) -> list[Portion]:
    return [Portion(**one) for one in json.loads(storage.read_bytes(work.path("portions.json")))]


def cut_into_portions(inputs: Sequence[Input], manifests: Sequence[Manifest]) -> list[Portion]:
    """Every shard of every input, large ones in several portions."""
    shards = [(one, shard) for one, manifest in zip(inputs, manifests, strict=True) for shard in manifest.shards]
    found: list[Portion] = []
    start = 0
    for (one, shard), cuts in zip(shards, in_threads(_cuts, [(one.root, shard.name) for one, shard in shards]), strict=True):
        for first, stop, size in cuts:
            found.append(Portion(len(found), one.folder, one.root, shard.name, first, stop, start, size, shard.bytes, shard.source))
            start += stop - first
    return found


def in_threads(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """For many small requests, which are latency, not work."""
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        return list(pool.map(function, items))


def _cuts(place: tuple[str, str]) -> list[tuple[int, int, int]]:
    """The portions of a shard: first row, the row after the last, bytes."""
    rows = index.read_index(layout.index_path(*place))
    ends = np.cumsum(rows.length, dtype=np.int64)
    found, first, before = [], 0, 0
    while first < len(rows):
        stop = max(first + 1, int(np.searchsorted(ends, before + PORTION_BYTES, "right")))
        after = int(ends[stop - 1])
        found.append((first, stop, after - before))
        first, before = stop, after
    return found
