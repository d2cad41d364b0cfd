"""The order of an epoch: a pure function of (dataset, seed, epoch), which can be asked for any position.

Shards are permuted and taken `block_shards` at a time; the items of a block are permuted jointly, which needs memory for one block.
The sequence of all blocks is cut into `lanes` equal stretches, and every global batch takes the same share of each: a batch mixes
lanes x block_shards shards, while a node whose ranks serve a few lanes reads the shards of those lanes alone.
"""

import math
import threading
from collections import OrderedDict
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from pipeline.core.run_directory import fingerprint
from shards.random_stream import BLOCK_ORDER, CAPTION, REPLACEMENT, SHARD_ORDER, hashes, item_keys, permutation, uniforms

EpochOver = Literal["pairs", "images"]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class OrderSettings:
    """Everything besides the dataset that decides an epoch's order; all of it is part of the fingerprint."""

    seed: int
    global_batch_size: int
    epoch_over: EpochOver = "pairs"
    lanes: int = 8
    block_shards: int = 8

    def fingerprint(self, dataset_fingerprint: str) -> str:
        return fingerprint({"dataset": dataset_fingerprint, **asdict(self)})


@dataclass(frozen=True)
class Items:
    """Items of an epoch, one a row: the number of each in the dataset's own order, its sample, its caption, its random key."""

    number: Integers
    sample: Integers
    caption: Integers
    key: npt.NDArray[np.uint64]


class ItemTable:
    """What the items of a dataset are: all (sample, caption) pairs, or all samples with a caption; shared by its epochs."""

    def __init__(self, captions_per_sample: npt.NDArray[np.uint16], shard_starts: Integers, epoch_over: EpochOver) -> None:
        self.captions, self.shard_starts, self.epoch_over = captions_per_sample, shard_starts, epoch_over
        per_sample = captions_per_sample.astype(np.int64) if epoch_over == "pairs" else (captions_per_sample > 0).astype(np.int64)
        ends = np.concatenate([[0], np.cumsum(per_sample)])
        self.shard_items: Integers = ends[shard_starts]  # items before each shard, and in all
        self.num_items = int(ends[-1])

    def of_shard(self, shard: int) -> tuple[Integers, Integers, Integers]:
        """(number, sample, caption) of the shard's items in the dataset's own order; caption 0 where it is still to be drawn."""
        start, end = int(self.shard_starts[shard]), int(self.shard_starts[shard + 1])
        counts = self.captions[start:end].astype(np.int64)
        if self.epoch_over == "images":
            counts = np.minimum(counts, 1)
        samples = np.repeat(np.arange(start, end, dtype=np.int64), counts)
        captions = np.arange(len(samples), dtype=np.int64) - np.repeat(np.cumsum(counts) - counts, counts)
        return self.shard_items[shard] + np.arange(len(samples), dtype=np.int64), samples, captions


class EpochOrder:
    """Position -> item of one epoch. `steps` full global batches; what is left after them changes with the epoch."""

    def __init__(self, table: ItemTable, settings: OrderSettings, epoch: int) -> None:
        self.table, self.settings, self.epoch = table, settings, epoch
        self.steps = table.num_items // settings.global_batch_size
        self._lanes = math.gcd(settings.lanes, settings.global_batch_size)
        self._key = int(item_keys(settings.seed, epoch, np.array([-1], dtype=np.int64))[0])  # the epoch's own, which no item has
        shards = permutation(self._key, SHARD_ORDER, len(table.shard_starts) - 1)
        self._blocks = [shards[start : start + settings.block_shards] for start in range(0, len(shards), settings.block_shards)]
        self._permuted: OrderedDict[int, tuple[Integers, Integers, Integers]] = OrderedDict()
        self._lock = threading.Lock()

    @cached_property
    def _block_ends(self) -> Integers:
        sizes = np.diff(self.table.shard_items)
        return np.cumsum([int(sizes[block].sum()) for block in self._blocks], dtype=np.int64)

    def item(self, position: int) -> tuple[int, int]:
        """(sample, caption) at a position of the epoch."""
        items = self.items(np.array([position]))
        return int(items.sample[0]), int(items.caption[0])

    def items(self, positions: Integers) -> Items:
        """The items at these positions, each in [0, steps x global_batch_size)."""
        places = self._places(positions)
        number, sample, caption = (np.empty(len(places), dtype=np.int64) for _ in range(3))
        blocks = np.searchsorted(self._block_ends, places, side="right")
        for block in np.unique(blocks):
            rows = blocks == block
            first = int(self._block_ends[block - 1]) if block else 0
            for target, column in zip((number, sample, caption), self._block(int(block)), strict=True):
                target[rows] = column[places[rows] - first]
        keys = item_keys(self.settings.seed, self.epoch, number)
        if self.settings.epoch_over == "images":
            caption = (uniforms(keys, CAPTION, 1)[:, 0] * self.table.captions[sample]).astype(np.int64)
        return Items(number, sample, caption, keys)

    def replacement(self, position: int, attempt: int) -> int:
        """The position whose item stands in for a damaged one: attempts 1, 2, ... until one is healthy."""
        key = item_keys(self.settings.seed, self.epoch, np.array([position]))
        return int(hashes(key, REPLACEMENT, attempt)[0, -1] % np.uint64(self.steps * self.settings.global_batch_size))

    def _places(self, positions: Integers) -> Integers:
        """Place in the sequence of all blocks: lane by lane."""
        share = self.settings.global_batch_size // self._lanes
        step, offset = np.divmod(positions, self.settings.global_batch_size)
        lane, within = np.divmod(offset, share)
        return np.asarray(lane * (self.steps * share) + step * share + within, dtype=np.int64)

    def _block(self, block: int) -> tuple[Integers, Integers, Integers]:
        with self._lock:  # the workers of a loader share an order
            if block not in self._permuted:
                self._permuted[block] = self._permute(block)
                while len(self._permuted) > 2 * self._lanes:  # each lane is in one block, and now and then between two
                    self._permuted.popitem(last=False)
            self._permuted.move_to_end(block)
            return self._permuted[block]

    def _permute(self, block: int) -> tuple[Integers, Integers, Integers]:
        columns = zip(*(self.table.of_shard(int(shard)) for shard in self._blocks[block]), strict=True)
        number, sample, caption = (np.concatenate(column) for column in columns)
        key = int(hashes(np.array([self._key], dtype=np.uint64), BLOCK_ORDER, block + 1)[0, -1])
        order = permutation(key, BLOCK_ORDER, len(number))
        return number[order], sample[order], caption[order]
