"""Batches for one rank, in an order that no number of ranks, workers or restarts can change. Torch enters with the caller's collate alone."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.core.errors import ConfigError, DataError
from shards.dataset import Dataset
from shards.item_maker import ItemMaker, MadeItems
from shards.order.epoch import EpochOrder, EpochOver, Epochs, OrderSettings, most_portions, order_settings
from shards.order.locality import Split, bytes_in_use, is_remote, refuse_small_cache, warn_of_shared_lanes
from shards.order.mixing import MixedDataset, refuse_parts_without_items
from shards.order.shares import Shares
from shards.pixels.transforms import Transform
from shards.quarantine import Damage, Entry, Quarantine
from shards.remote.prefetch import Prefetch
from shards.stage_times import StageTimes
from shards.text_rules import MAX_WORDS

BatchT = TypeVar("BatchT")


@dataclass(frozen=True)
class Position:
    """Where the next step starts. `step` counts within the epoch; the fingerprint says of which order.

    `drawn`: of datasets that are mixed, the items of each in all steps before.
    """

    epoch: int
    step: int
    fingerprint: str
    drawn: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Made(Generic[BatchT]):
    """One micro-batch, the damage met on the way, and the bytes read of each dataset."""

    batch: BatchT
    damages: list[Damage]
    bytes_read: list[int]


class ShardLoader(Generic[BatchT]):
    """Yields this rank's micro-batches step by step from any position.

    Global batch n of an epoch holds positions [n x global_batch_size, (n + 1) x global_batch_size); micro-batch a of rank r is slice number
    a x world_size + r of it. `num_workers` threads read, decode and collate ahead (decoding releases the interpreter lock). `lanes` and `block_shards`
    are chosen by the dataset's shards and the global batch where they are None.

    Raises:
        ConfigError: the batch, the lanes and the ranks do not fit each other, or the cache does not hold what a node has in use.
        DataError: a dataset of a blend has fewer items than there are lanes.
    """

    def __init__(
        self,
        dataset: Dataset | MixedDataset,
        *,
        transform: Transform,
        collate: Callable[[MadeItems], BatchT],
        global_batch_size: int,
        micro_batch_size: int,
        accumulation_steps: int = 1,
        rank: int = 0,
        world_size: int = 1,
        ranks_per_node: int = 1,
        seed: int = 0,
        epoch_over: EpochOver = "pairs",
        num_workers: int = 0,
        max_words: int = MAX_WORDS,
        lanes: int | None = None,
        block_shards: int | None = None,
    ) -> None:
        _refuse_uneven(global_batch_size, micro_batch_size, accumulation_steps, world_size)
        self.dataset, self.collate = dataset, collate
        self.rank, self.split = rank, Split(micro_batch_size, accumulation_steps, world_size, ranks_per_node)
        self.num_workers = num_workers
        num_shards = sum(len(part.dataset.manifest.shards) for part in dataset.parts)
        self.settings = order_settings(num_shards, seed, global_batch_size, epoch_over, lanes, block_shards)
        self.fingerprint = self.settings.fingerprint(dataset.fingerprint)
        self.epochs = _epochs(dataset, self.settings)
        self._pool = ThreadPoolExecutor(num_workers, thread_name_prefix="albef-loader") if num_workers else None
        self._quarantine = Quarantine()
        self._bytes_read = [0] * len(dataset.parts)
        self.stage_times = StageTimes()
        self._items = ItemMaker(dataset, transform, self._quarantine, max_words, self.stage_times)
        self._prefetch = self._fit_to_the_node() if self.steps_per_epoch else None
        cv2.setNumThreads(1)  # its warps would start a thread per core inside each of our workers and beside torch's

    @property
    def items_per_epoch(self) -> int:
        return self.epochs.num_items

    @property
    def steps_per_epoch(self) -> int:
        """The same on every rank; items that do not fill a global batch wait for another epoch's order."""
        return self.epochs.steps

    def sources(self, position: Position, quarantine: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
        """Of each dataset, before this position: items `drawn`, the `epochs` of it those are, and how often the quarantine `replaced` one.

        And the `bytes` of its samples that this rank was given.
        """
        drawn = self.epochs.drawn(position.epoch, position.step)
        replaced = [0] * len(drawn)
        for entry in quarantine:
            replaced[self.dataset.part_of(int(entry["sample"]))[0]] += entry["replaced"]
        return {
            part.name: {"drawn": drawn[n], "epochs": drawn[n] / self.epochs.tables[n].num_items, "replaced": replaced[n], "bytes": self._bytes_read[n]}
            for n, part in enumerate(self.dataset.parts)
        }

    def restore_bytes_read(self, sources: dict[str, dict[str, float]]) -> None:
        """Go on counting from a checkpoint's sum over all ranks; for one rank of them."""
        self._bytes_read = [int(sources.get(part.name, {}).get("bytes", 0)) for part in self.dataset.parts]

    @property
    def quarantine(self) -> list[dict[str, Any]]:
        """Damaged samples met in the steps delivered so far: sample, key, reason, where first met, and how often replaced."""
        return self._quarantine.entries

    @property
    def quarantine_counts(self) -> tuple[int, int]:
        """Samples in the quarantine that every rank knows of, and those the other ranks have not been told of."""
        return self._quarantine.num_shared, self._quarantine.num_unshared

    def share_quarantine(self, of_all: Callable[[list[Entry]], list[list[Entry]]]) -> list[Entry]:
        """The quarantine of all ranks, counted as one rank would have; every rank must call. `of_all` gives every rank's value on every rank."""
        return self._quarantine.share(of_all)

    def restore_quarantine(self, entries: Sequence[dict[str, Any]]) -> None:
        """Take over a checkpoint's quarantine: what it lists stays replaced, even where the shard was repaired since."""
        self._quarantine.restore(entries)

    def start(self) -> Position:
        return self._position(0, 0)

    def from_position(self, position: Position) -> Iterator[tuple[list[BatchT], Position]]:
        """Endless `(micro_batches, position)`: accumulation_steps batches of this rank, and the position after them.

        Raises:
            DataError: the position belongs to other data, another seed or global batch size; or the dataset holds no full global batch.
            Stopped: the storage fails.
        """
        self._refuse_foreign(position)
        return self._steps(position)

    def close(self) -> None:
        """End the workers; iterators handed out end with them."""
        if self._pool:
            self._pool.shutdown(wait=True, cancel_futures=True)
        if self._prefetch:
            self._prefetch.close()

    def _fit_to_the_node(self) -> Prefetch | None:
        """Hold the indexes that this rank's lanes use, and ask ahead for what the node's lanes will; nothing where all shards are on local disks."""
        parts, settings, split = self.dataset.parts, self.settings, self.split
        in_use = len(split.lanes_of_rank(self.rank, settings))
        for number, (part, table) in enumerate(zip(parts, self.epochs.tables, strict=True)):
            held = 2 * in_use * most_portions(self.epochs, number)  # of the blocks in use, and of those they are followed by
            part.dataset.indexes.count = table.ends.count = max(held, 2)
        if not any(is_remote(part.dataset) for part in parts):
            return None
        reader = parts[0].dataset.reader  # all parts share it
        piece_bytes = reader.options.piece_bytes
        refuse_small_cache(parts, self.epochs, split, reader.cache_bytes, piece_bytes)
        if self.rank == 0:
            warn_of_shared_lanes(parts, self.epochs, split, piece_bytes)
        lanes = split.lanes_of_node(self.rank // split.ranks_per_node, settings)
        needed = bytes_in_use(parts, self.epochs, len(lanes), piece_bytes)
        turns = min(split.ranks_per_node, split.world_size)
        return Prefetch(parts, self.epochs, lanes, self.rank % turns, turns, min(1.0, (reader.cache_bytes - needed) / max(1, needed)))

    def _position(self, epoch: int, step: int) -> Position:
        names = [part.name for part in self.dataset.parts]
        drawn = dict(zip(names, self.epochs.drawn(epoch, step), strict=True)) if len(names) > 1 else {}
        return Position(epoch, step, self.fingerprint, drawn)

    def _refuse_foreign(self, position: Position) -> None:
        if position.fingerprint != self.fingerprint:
            raise DataError(
                f"position of fingerprint {position.fingerprint}, this loader's is {self.fingerprint}: dataset, blend, seed, global_batch_size, epoch_over, "
                f"lanes or block_shards differ from the run that saved it (now dataset {self.dataset.fingerprint}, {self.settings}); resume with the same ones"
            )
        if self.steps_per_epoch == 0:
            raise DataError(
                f"{self.dataset.folder}: {self.items_per_epoch} items do not fill a global batch of {self.settings.global_batch_size}; take a smaller one"
            )
        if position.drawn != (expected := self._position(position.epoch, position.step).drawn):
            raise DataError(f"position with {position.drawn} items drawn, the order says {expected}: the checkpoint's state was changed; use an older one")

    def _steps(self, position: Position) -> Iterator[tuple[list[BatchT], Position]]:
        parts = self._micro_batches(position)
        epoch, step = position.epoch, position.step
        while True:
            batches = []
            for _ in range(self.split.accumulation_steps):
                made = next(parts)
                self._quarantine.record(made.damages)
                self._bytes_read = [before + more for before, more in zip(self._bytes_read, made.bytes_read, strict=True)]
                batches.append(made.batch)
            epoch, step = (epoch, step + 1) if step + 1 < self.steps_per_epoch else (epoch + 1, 0)
            yield batches, self._position(epoch, step)

    def _micro_batches(self, position: Position) -> Iterator[_Made[BatchT]]:
        """In order, whichever worker finishes first; with workers, some are made ahead."""
        tasks = self._tasks(position)
        if self._pool is None:
            for order, positions in tasks:
                yield self._make(order, positions)
            return
        ahead: deque[Future[_Made[BatchT]]] = deque()
        try:
            while True:
                while len(ahead) <= self.num_workers + 1:  # bounded: one more ready than there are workers
                    ahead.append(self._pool.submit(self._make, *next(tasks)))
                self.stage_times.look_at(ahead)
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()

    def _tasks(self, position: Position) -> Iterator[tuple[EpochOrder, npt.NDArray[np.int64]]]:
        epoch, first = position.epoch, position.step
        split = self.split
        within = np.arange(split.micro_batch_size, dtype=np.int64)
        while True:
            order = self.epochs.order(epoch)
            for step in range(first, self.steps_per_epoch):
                if self._prefetch:
                    self._prefetch.at(epoch, step)
                for accumulation in range(split.accumulation_steps):
                    part = accumulation * split.world_size + self.rank
                    yield order, step * self.settings.global_batch_size + part * split.micro_batch_size + within
            epoch, first = epoch + 1, 0

    def _make(self, order: EpochOrder, positions: npt.NDArray[np.int64]) -> _Made[BatchT]:
        items, damages = self._items(order, positions)
        bytes_read = [0] * len(self.dataset.parts)
        for item in items:
            bytes_read[self.dataset.part_of(item.sample)[0]] += self.dataset.bytes_of(item.sample)
        with self.stage_times.busy("collate"):
            return _Made(self.collate(items), damages, bytes_read)


def _epochs(dataset: Dataset | MixedDataset, settings: OrderSettings) -> Epochs:
    tables = [part.dataset.item_table(settings.epoch_over) for part in dataset.parts]
    if len(tables) > 1:
        refuse_parts_without_items(dataset.parts, [table.num_items for table in tables], settings.lanes)
    return Epochs(tables, settings, Shares([part.share for part in dataset.parts], settings.lanes))


def _refuse_uneven(global_batch_size: int, micro_batch_size: int, accumulation_steps: int, world_size: int) -> None:
    if global_batch_size == micro_batch_size * accumulation_steps * world_size:
        return
    part = micro_batch_size * accumulation_steps
    worlds = [world for world in range(1, global_batch_size + 1) if global_batch_size % world == 0]
    hint = f"{global_batch_size // part} ranks fit these" if global_batch_size % part == 0 else f"ranks that divide it: {', '.join(map(str, worlds))}"
    split = f"micro_batch_size {micro_batch_size} x accumulation_steps {accumulation_steps} x {world_size} ranks"
    raise ConfigError(f"global_batch_size {global_batch_size} is not {split}; {hint}")
