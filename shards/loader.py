"""Batches for one rank, in an order that no number of ranks, workers or restarts can change. Torch enters with the caller's collate alone."""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.core.errors import ConfigError, DataError
from shards.dataset import Dataset
from shards.item_maker import ItemMaker, MadeItems
from shards.order import EpochOrder, EpochOver, ItemTable, OrderSettings
from shards.quarantine import Damage, Quarantine
from shards.stage_times import StageTimes
from shards.transforms import Transform

log = logging.getLogger(__name__)

BatchT = TypeVar("BatchT")


@dataclass(frozen=True)
class Position:
    """Where the next step starts. `step` counts within the epoch; the fingerprint says of which order."""

    epoch: int
    step: int
    fingerprint: str


class ShardLoader(Generic[BatchT]):
    """Yields this rank's micro-batches step by step from any position.

    Global batch n of an epoch holds positions [n x global_batch_size, (n + 1) x global_batch_size); micro-batch a of rank r is slice number
    a x world_size + r of it. `num_workers` threads read, decode and collate ahead (decoding releases the interpreter lock).
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        transform: Transform,
        collate: Callable[[MadeItems], BatchT],
        global_batch_size: int,
        micro_batch_size: int,
        accumulation_steps: int = 1,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        epoch_over: EpochOver = "pairs",
        num_workers: int = 0,
        max_words: int = 30,
        lanes: int = 8,
        block_shards: int = 8,
    ) -> None:
        _refuse_uneven(global_batch_size, micro_batch_size, accumulation_steps, world_size)
        self.dataset, self.collate = dataset, collate
        self.micro_batch_size, self.accumulation_steps, self.rank, self.world_size = micro_batch_size, accumulation_steps, rank, world_size
        self.num_workers = num_workers
        self.settings = OrderSettings(seed, global_batch_size, epoch_over, lanes, block_shards)
        self.fingerprint = self.settings.fingerprint(dataset.fingerprint)
        self._table = ItemTable(dataset.captions_per_sample, dataset.shard_starts, epoch_over)
        self._pool = ThreadPoolExecutor(num_workers, thread_name_prefix="albef-loader") if num_workers else None
        self._quarantine = Quarantine()
        self.stage_times = StageTimes()
        self._items = ItemMaker(dataset, transform, self._quarantine, max_words, self.stage_times)
        if not dataset.cache_holds(lanes * block_shards):
            log.warning(
                "%s: %d shards are in use at once and do not fit the cache: some will be fetched again and again; use a larger cache (TMPDIR) or fewer lanes",
                dataset.folder,
                lanes * block_shards,
            )
        cv2.setNumThreads(1)  # its warps would start a thread per core inside each of our workers and beside torch's

    @property
    def items_per_epoch(self) -> int:
        return self._table.num_items

    @property
    def steps_per_epoch(self) -> int:
        """The same on every rank; items that do not fill a global batch wait for another epoch's order."""
        return self.items_per_epoch // self.settings.global_batch_size

    @property
    def quarantine(self) -> list[dict[str, Any]]:
        """Damaged samples met in the steps delivered so far: sample, key, reason, where first met, and how often replaced."""
        return self._quarantine.entries

    def restore_quarantine(self, entries: Sequence[dict[str, Any]]) -> None:
        """Take over a checkpoint's quarantine: what it lists stays replaced, even where the shard was repaired since."""
        self._quarantine.restore(entries)

    def start(self) -> Position:
        return Position(0, 0, self.fingerprint)

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

    def _refuse_foreign(self, position: Position) -> None:
        if position.fingerprint != self.fingerprint:
            raise DataError(
                f"position of fingerprint {position.fingerprint}, this loader's is {self.fingerprint}: dataset, seed, global_batch_size or epoch_over "
                f"differ from the run that saved it (now dataset {self.dataset.fingerprint}, {self.settings}); resume with the same ones"
            )
        if self.steps_per_epoch == 0:
            raise DataError(
                f"{self.dataset.folder}: {self.items_per_epoch} items do not fill a global batch of {self.settings.global_batch_size}; take a smaller one"
            )

    def _steps(self, position: Position) -> Iterator[tuple[list[BatchT], Position]]:
        parts = self._micro_batches(position)
        epoch, step = position.epoch, position.step
        while True:
            batches = []
            for _ in range(self.accumulation_steps):
                batch, damages = next(parts)
                self._quarantine.record(damages)
                batches.append(batch)
            epoch, step = (epoch, step + 1) if step + 1 < self.steps_per_epoch else (epoch + 1, 0)
            yield batches, Position(epoch, step, self.fingerprint)

    def _micro_batches(self, position: Position) -> Iterator[tuple[BatchT, list[Damage]]]:
        """In order, whichever worker finishes first; with workers, some are made ahead."""
        tasks = self._tasks(position)
        if self._pool is None:
            for order, positions in tasks:
                yield self._make(order, positions)
            return
        ahead: deque[Future[tuple[BatchT, list[Damage]]]] = deque()
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
        within = np.arange(self.micro_batch_size, dtype=np.int64)
        while True:
            order = EpochOrder(self._table, self.settings, epoch)
            for step in range(first, self.steps_per_epoch):
                for accumulation in range(self.accumulation_steps):
                    part = accumulation * self.world_size + self.rank
                    yield order, step * self.settings.global_batch_size + part * self.micro_batch_size + within
            epoch, first = epoch + 1, 0

    def _make(self, order: EpochOrder, positions: npt.NDArray[np.int64]) -> tuple[BatchT, list[Damage]]:
        items, damages = self._items(order, positions)
        with self.stage_times.busy("collate"):
            return self.collate(items), damages


def _refuse_uneven(global_batch_size: int, micro_batch_size: int, accumulation_steps: int, world_size: int) -> None:
    if global_batch_size == micro_batch_size * accumulation_steps * world_size:
        return
    part = micro_batch_size * accumulation_steps
    worlds = [world for world in range(1, global_batch_size + 1) if global_batch_size % world == 0]
    hint = f"{global_batch_size // part} ranks fit these" if global_batch_size % part == 0 else f"ranks that divide it: {', '.join(map(str, worlds))}"
    split = f"micro_batch_size {micro_batch_size} x accumulation_steps {accumulation_steps} x {world_size} ranks"
    raise ConfigError(f"global_batch_size {global_batch_size} is not {split}; {hint}")
