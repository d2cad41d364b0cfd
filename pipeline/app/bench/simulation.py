"""`albef bench shards-simulation`: a day of training on many nodes in minutes. Order, prefetching and node cache are the real ones; bytes and time are made up.

A shard's pieces are files of the right length in the node's cache folder, but holes: nothing is sent and nothing fills the disk. Each node has a folder of its
own and its ranks are one process here, which reads what they would, a few steps at a time. The nodes know nothing of one another, so any of them may be left
out.
"""

import logging
import os
import shutil
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np

from pipeline.app.bench.row import BenchRow, alone, measure
from pipeline.core.errors import ConfigError
from shards import index, layout
from shards.dataset import Dataset
from shards.held import Held
from shards.manifest import Manifest, ShardEntry
from shards.order.epoch import Epochs, OrderSettings, most_portions, order_settings
from shards.order.locality import Split, bytes_in_use, refuse_small_cache
from shards.remote.node_cache import NodeCache
from shards.remote.prefetch import Prefetch
from shards.remote.ranges import CACHE_BYTES, PIECE_BYTES, RangeReader

log = logging.getLogger(__name__)

MEAN_BYTES, SPREAD = 54_000, 0.5  # of a sample; the logarithm's deviation
KINDS = 16  # shards of different sizes; the others repeat them
WINDOW_STEPS = 32  # read at a time: a twentieth of a block
LOOK_EVERY = 8  # windows, between looks at the cache folder's size
GIB = 2**30
SEED = 42
AMPLIFICATION, BALANCE = "bytes fetched / bytes of the samples read", "bytes of the node that fetches most / mean"


@dataclass(frozen=True)
class Fleet:
    """Nodes of `ranks_per_node` ranks that share every global batch, what each gives its cache, and what they read."""

    nodes: int = 64
    ranks_per_node: int = 8
    global_batch_size: int = 4096
    cache_bytes: int = 4 * GIB
    lanes: int | None = None
    shards: int = 1400
    shard_samples: int = 10_000

    @property
    def split(self) -> Split:
        world = self.nodes * self.ranks_per_node
        return Split(self.global_batch_size // world, 1, world, self.ranks_per_node)

    @property
    def settings(self) -> OrderSettings:
        return order_settings(self.shards, SEED, self.global_batch_size, lanes=self.lanes)

    def __str__(self) -> str:
        shards = f"{self.shards * self.shard_samples / 1e6:g}M samples in {self.shards} shards of {_dataset_bytes(self) / self.shards / 1e6:.0f} MB on average"
        ranks = f"{self.nodes} nodes x {self.ranks_per_node} ranks, global batch {self.global_batch_size}"
        return f"{shards}; {ranks}; {self.settings.lanes} lanes, {self.settings.block_shards} shards a block; cache {self.cache_bytes / GIB:.2f} GiB"


@dataclass(frozen=True)
class Stretch:
    """Steps [first, first + count) of the run; what the first `uncounted` of them fetch is left out of the figures."""

    first: int
    count: int
    uncounted: int = 0


@dataclass(frozen=True)
class NodeDay:
    """What one node asked the store for, and what its cache held at most."""

    requests: int
    bytes_fetched: int
    peak_cache_bytes: int
    samples: int
    largest_burst_bytes: int  # fetched within one window


@dataclass(frozen=True)
class Scale:
    """Nodes that are simulated where not all are, and the day: its hours and the seconds a step takes."""

    nodes: int
    hours: float
    step_s: float


def run(cases: Sequence[str], scale: Scale) -> list[BenchRow]:
    return measure(cases, CASES, scale)


def day_rows(fleet: Fleet, nodes: Sequence[int], hours: float, step_s: float) -> list[BenchRow]:
    """From the first step on, with empty caches."""
    steps = round(hours * 3600 / step_s)
    began = time.perf_counter()
    days = _simulated(fleet, nodes, Stretch(0, steps))
    took = time.perf_counter() - began
    note = f"{hours:g} h at {step_s:g} s a step, {steps / _epochs_of(fleet).steps:.1f} epochs; {fleet}; nodes {', '.join(map(str, nodes))} simulated"
    fetched, requests = [day.bytes_fetched for day in days], [day.requests for day in days]
    mean = sum(fetched) / len(fetched)
    peak, burst = max(day.peak_cache_bytes for day in days), max(day.largest_burst_bytes for day in days)
    return [
        alone("day: amplification", AMPLIFICATION, [_amplification(fleet, days)], note),
        alone("day: balance", BALANCE, [max(fetched) / mean], "of the same nodes"),
        alone("day: requests", "requests/node", [sum(requests) / len(requests)], f"pieces of {PIECE_BYTES / 2**20:g} MiB at most"),
        alone("day: bytes", "GB/node", [mean / 1e9], "fetched"),
        alone(
            "day: cache peak", "GiB/node", [peak / GIB], f"files in the cache folder, the largest of all nodes; the bound is {fleet.cache_bytes / GIB:g} GiB"
        ),
        alone("day: burst", "MiB", [burst / 2**20], f"most that a node fetched within {WINDOW_STEPS} steps, its start left out"),
        alone("day: simulation", "s", [took], f"wall seconds for these {len(nodes)} nodes in {_processes()} processes"),
    ]


def epoch_rows(case: str, fleet: Fleet, nodes: Sequence[int], why: str) -> list[BenchRow]:
    """The second epoch of these nodes."""
    steps = _epochs_of(fleet).steps
    days = _simulated(fleet, nodes, Stretch(0, 2 * steps, uncounted=steps))
    fetched = [day.bytes_fetched for day in days]
    note = f"{why}; {fleet}, {needed_bytes(fleet) / GIB:.2f} GiB needed; {len(nodes)} nodes simulated"
    if refusal := _refusal(fleet):
        note += f"; at its start the loader says: {refusal}"
    rows = [alone(f"{case}: amplification", AMPLIFICATION, [_amplification(fleet, days)], note)]
    if len(nodes) == fleet.nodes:
        rows.append(alone(f"{case}: balance", BALANCE, [max(fetched) / (sum(fetched) / len(fetched))], note))
    return rows


@dataclass(frozen=True)
class OtherFleet:
    """A fleet on which something does not fit, and how many of its nodes tell."""

    case: str
    fleet: Fleet
    nodes: int
    why: str


def other_fleets(fleet: Fleet) -> list[OtherFleet]:
    """Nodes that share lanes, and caches that are just large enough or too small."""
    needed = needed_bytes(fleet)
    odd, few = replace(fleet, nodes=48, global_batch_size=6144), replace(fleet, nodes=16, lanes=16)
    return [
        OtherFleet("64 lanes on 48 nodes", odd, 6, "a node's ranks begin and end within lanes, which two nodes then read"),
        OtherFleet("88 shards a lane", few, 2, "16 lanes on 16 nodes"),
        OtherFleet("cache of what is needed", replace(fleet, cache_bytes=needed), 2, "no room to fetch ahead"),
        OtherFleet(
            f"cache of {CACHE_BYTES // 2**30} GiB", replace(fleet, cache_bytes=CACHE_BYTES), 2, "the default; some pieces are still there from the epoch before"
        ),
        OtherFleet("half of what is needed", replace(fleet, cache_bytes=needed // 2), 1, "too small a cache"),
    ]


def restart_rows(fleet: Fleet, simulated_nodes: int) -> list[BenchRow]:
    """Stopped in the middle of the second epoch, gone on with half the nodes and empty caches; of the first lanes, which the first nodes of both have."""
    steps, half = _epochs_of(fleet).steps, replace(fleet, nodes=fleet.nodes // 2)
    stop, end = steps + steps // 2, 2 * steps
    pairs = max(1, min(simulated_nodes, fleet.nodes) // 2)
    nodes, half_nodes = range(2 * pairs), range(pairs)
    uninterrupted = _simulated(fleet, nodes, Stretch(0, end))
    parts = [*_simulated(fleet, nodes, Stretch(0, stop)), *_simulated(half, half_nodes, Stretch(stop, end - stop))]
    more = sum(day.bytes_fetched for day in parts) - sum(day.bytes_fetched for day in uninterrupted)
    note = (
        f"{stop} steps on {fleet.nodes} nodes, then {end - stop} on {half.nodes} with empty caches, against {end} on {fleet.nodes}: the same global batches; "
        f"of the lanes of the first {len(nodes)} nodes; {fleet}"
    )
    return [alone("restart on half the nodes: bytes more", "share of an epoch", [more * fleet.nodes / len(nodes) / _dataset_bytes(fleet)], note)]


def memory_rows(fleet: Fleet) -> list[BenchRow]:
    """What one rank of the fleet holds of the order, with the indexes of the shards it has in use."""
    one = _index_of_kind(0, fleet.shard_samples)
    made_up_dataset(fleet)  # what is made up once is not counted
    tracemalloc.start()
    try:
        epochs = _epochs_of(fleet)
        rank = np.arange(fleet.split.micro_batch_size)
        for epoch in (0, 1):
            epochs.order(epoch).items(rank)
        order_bytes = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    held = 2 * len(fleet.split.lanes_of_rank(0, fleet.settings)) * most_portions(epochs, 0)
    index_bytes = held * sum(array.nbytes for array in (one.key_hash, one.offset, one.length, one.captions, one.crc32c))
    return [
        alone(
            "order state",
            "MB/process",
            [order_bytes / 1e6],
            f"manifest's entries, item table and two epochs' shards of {fleet.shards * fleet.shard_samples / 1e6:g}M samples, by tracemalloc",
        ),
        alone(
            "indexes held", "MB/process", [index_bytes / 1e6], f"at most {held} indexes of {fleet.shard_samples} samples: blocks in use and those that follow"
        ),
    ]


def fleets_rows(fleet: Fleet) -> list[BenchRow]:
    rows = []
    for other in other_fleets(fleet):
        rows += epoch_rows(other.case, other.fleet, _evenly(other.fleet.nodes, other.nodes), other.why)
    return rows


CASES: dict[str, Callable[[Scale], list[BenchRow]]] = {
    "day": lambda scale: day_rows(Fleet(), _evenly(Fleet.nodes, scale.nodes), scale.hours, scale.step_s),
    "epoch": lambda _: epoch_rows("epoch", Fleet(), range(Fleet.nodes), "the second epoch, so that what is fetched ahead of an epoch is counted once"),
    "fleets": lambda _: fleets_rows(Fleet()),
    "restart": lambda scale: restart_rows(Fleet(), scale.nodes),
    "memory": lambda _: memory_rows(Fleet()),
}


def _simulated(fleet: Fleet, nodes: Sequence[int], stretch: Stretch) -> list[NodeDay]:
    with ProcessPoolExecutor(_processes()) as pool:
        return list(pool.map(partial(simulate_node, fleet, stretch), nodes))


def simulate_node(fleet: Fleet, stretch: Stretch, node: int) -> NodeDay:
    """One node's reads of these steps, through a cache of its own that is empty at first."""
    folder = tempfile.mkdtemp(prefix="albef-simulation-")
    try:
        return Node(fleet, node, folder).go(stretch)
    finally:
        shutil.rmtree(folder)


class Node:
    """One node of a fleet, its cache in `folder`."""

    def __init__(self, fleet: Fleet, node: int, folder: str) -> None:
        self.fleet, self.folder = fleet, folder
        self.reader = HoleReader(fleet.cache_bytes, folder)
        self.dataset = made_up_dataset(fleet, self.reader)
        self.epochs = _epochs_of(fleet, self.dataset)
        split, settings = fleet.split, fleet.settings
        first = node * split.ranks_per_node * split.micro_batch_size
        self.within = np.arange(first, first + split.ranks_per_node * split.micro_batch_size)  # of every global batch
        lanes = split.lanes_of_node(node, settings)
        needed = bytes_in_use(self.dataset.parts, self.epochs, len(lanes), PIECE_BYTES)
        room = min(1.0, max(0.0, (fleet.cache_bytes - needed) / needed))
        self.prefetch = Prefetch(self.dataset.parts, self.epochs, lanes, turn=0, turns=1, share=room)
        self.peak = self.burst = self.samples = 0

    def go(self, stretch: Stretch) -> NodeDay:
        counted_from = stretch.first + stretch.uncounted
        self._steps(stretch.first, counted_from)
        uncounted = (self.reader.fetched_pieces, self.reader.fetched_bytes, self.samples)
        self._steps(counted_from, stretch.first + stretch.count)
        pieces, fetched, samples = (self.reader.fetched_pieces, self.reader.fetched_bytes, self.samples)
        return NodeDay(pieces - uncounted[0], fetched - uncounted[1], max(self.peak, _bytes_in(self.folder)), samples - uncounted[2], self.burst)

    def _steps(self, first: int, end: int) -> None:
        steps = self.epochs.steps
        for number, start in enumerate(range(first, end, WINDOW_STEPS)):
            stop = min(start + WINDOW_STEPS, end)
            before = self.reader.fetched_bytes
            for epoch in range(start // steps, (stop - 1) // steps + 1):  # a window may end one epoch and begin the next
                self._window(epoch, max(start - epoch * steps, 0), min(stop - epoch * steps, steps))
            if number:  # the burst at the start is of its own kind
                self.burst = max(self.burst, self.reader.fetched_bytes - before)
            if number % LOOK_EVERY == 0:
                self.peak = max(self.peak, _bytes_in(self.folder))

    def _window(self, epoch: int, first: int, end: int) -> None:
        self.prefetch.ask(epoch, first)
        positions = (np.arange(first, end)[:, None] * self.epochs.settings.global_batch_size + self.within).ravel()
        samples = self.epochs.order(epoch).items(positions).sample
        for shard, start in pieces_of(samples, self.fleet.shard_samples):
            entry = self.dataset.manifest.shards[shard]
            self.reader.read(layout.tar_path(self.dataset.folder, entry.name), start, 1, entry.bytes, identity=entry.sha256)
        self.samples += len(samples)


class HoleReader(RangeReader):
    """Fetches nothing: a piece is a file of its length without bytes. What is announced is fetched at once, so that a run repeats exactly."""

    def __init__(self, cache_bytes: int, folder: str) -> None:
        super().__init__(cache_bytes, folder, requests_in_flight=1)
        self.fetched_pieces = self.fetched_bytes = 0

    def _fetch(self, path: str, piece: Any, total: int, deadline: float) -> Iterator[memoryview]:  # noqa: ARG002  # overrides
        self.fetched_pieces += 1
        self.fetched_bytes += piece.size
        return iter(())

    def _shared_cache(self) -> NodeCache:
        cache = super()._shared_cache()
        cache.touch_every_s = 0.0  # hours pass in seconds here: every use counts
        return cache

    def prefetch(self, path: str, start: int, end: int, total: int, identity: str = "") -> None:
        for piece in self._pieces(path, start, min(end, total), total, identity):
            self._cached(path, piece, 0, 0, total)


def made_up_dataset(fleet: Fleet, reader: RangeReader | None = None) -> Dataset:
    """The real class, over a manifest and indexes that were never written."""
    kinds = [_index_of_kind(kind, fleet.shard_samples) for kind in range(KINDS)]
    samples = fleet.shard_samples
    entries = [
        ShardEntry(f"{shard:05d}", samples, samples, kinds[shard % KINDS].tar_bytes, f"{shard:064x}", "made up", samples) for shard in range(fleet.shards)
    ]
    dataset = Dataset("simulated://dataset", Manifest(1, tuple(entries), {}, {}, "simulation"), reader=reader)
    dataset.indexes = Held(lambda shard: kinds[shard % KINDS], dataset.indexes.count)
    return dataset


@lru_cache(2 * KINDS)
def _index_of_kind(kind: int, samples: int) -> index.ShardIndex:
    draw = np.random.default_rng(kind)
    sizes = MEAN_BYTES * np.exp(SPREAD * draw.standard_normal(samples) - SPREAD**2 / 2)
    lengths = np.maximum(1, np.round(sizes / 512)).astype(np.uint64) * np.uint64(512)
    offsets = np.cumsum(lengths) - lengths
    zeros = np.zeros(samples, dtype=np.uint64)
    return index.ShardIndex(zeros, offsets, lengths, np.ones(samples, np.uint16), zeros.astype(np.uint32), int(lengths.sum()) + 1024)


@lru_cache(1)
def _first_and_last_pieces(shard_samples: int) -> tuple[np.ndarray, np.ndarray]:
    """The pieces each row of each kind of shard begins and ends in, `int64 [KINDS, shard_samples]`."""
    kinds = [_index_of_kind(kind, shard_samples) for kind in range(KINDS)]
    first = np.stack([kind.offset for kind in kinds]).astype(np.int64)
    last = first + np.stack([kind.length for kind in kinds]).astype(np.int64) - 1
    return first // PIECE_BYTES, last // PIECE_BYTES


def pieces_of(samples: np.ndarray, shard_samples: int) -> list[tuple[int, int]]:
    """(shard, first byte of the piece) of every piece that the samples lie in, each once, in the order in which they are first needed."""
    shards, rows = np.divmod(samples, shard_samples)
    pieces = np.stack([table[shards % KINDS, rows] for table in _first_and_last_pieces(shard_samples)], axis=1)
    keys = (shards[:, None] * 2**20 + pieces).ravel()
    _, places = np.unique(keys, return_index=True)
    return [(int(key >> 20), int(key % 2**20) * PIECE_BYTES) for key in keys[np.sort(places)]]


def _epochs_of(fleet: Fleet, dataset: Dataset | None = None) -> Epochs:
    return Epochs([(dataset or made_up_dataset(fleet)).item_table("pairs")], fleet.settings)


def needed_bytes(fleet: Fleet) -> int:
    most = max(len(fleet.split.lanes_of_node(node, fleet.settings)) for node in range(fleet.nodes))
    return bytes_in_use(made_up_dataset(fleet).parts, _epochs_of(fleet), most, PIECE_BYTES)


def _refusal(fleet: Fleet) -> str | None:
    """What the loader says to a cache that is too small."""
    try:
        refuse_small_cache(made_up_dataset(fleet).parts, _epochs_of(fleet), fleet.split, fleet.cache_bytes, PIECE_BYTES)
    except ConfigError as error:
        return str(error)
    return None


def _dataset_bytes(fleet: Fleet) -> int:
    return sum(entry.bytes for entry in made_up_dataset(fleet).manifest.shards)


def _amplification(fleet: Fleet, days: Sequence[NodeDay]) -> float:
    """Against reading every sample's bytes once."""
    return sum(day.bytes_fetched for day in days) / (sum(day.samples for day in days) * _dataset_bytes(fleet) / (fleet.shards * fleet.shard_samples))


def _evenly(nodes: int, wanted: int) -> list[int]:
    count = min(nodes, wanted)
    return [node * nodes // count for node in range(count)]


def _bytes_in(folder: str) -> int:
    with os.scandir(folder) as entries:
        return sum(entry.stat().st_size for entry in entries)


def _processes() -> int:
    return len(os.sched_getaffinity(0))
