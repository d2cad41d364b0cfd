"""The order of an epoch: a pure function of (dataset, seed, epoch), which can be asked for any position.

Shards are permuted; their items, one shard after the other, are cut into `lanes` equal stretches, and every global batch takes the same share of each. A lane
is cut into blocks of about `block_shards` shards, whose items are permuted jointly. So a batch mixes lanes x block_shards shards, while a node whose ranks
serve a few lanes reads the bytes of those lanes alone. No permutation of items is stored: what a process holds is one number a shard.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
import numpy.typing as npt

from pipeline.core.errors import ConfigError
from pipeline.core.run_directory import fingerprint
from shards.held import Held
from shards.order.shares import Shares
from shards.random_stream import BLOCK_ORDER, CAPTION, FIRST_ITEM, REPLACEMENT, SHARD_ORDER, hashes, item_keys, permutation, permuted, uniforms

EpochOver = Literal["pairs", "images"]
Integers = npt.NDArray[np.int64]
Captions = npt.NDArray[np.uint16]

SHARDS_PER_LANE = 20  # a lane's two cut shards are read by two nodes: at most 1 in 20 of its bytes more
MOST_LANES = 64  # nodes that can each have lanes of their own
SHARDS_MIXED = 64  # shards in use at once where there are few lanes; webdataset's recipes shuffle through fewer
BLOCK_SHARDS = 4  # shards a lane has in use at least: a group of consecutive items comes from one lane
TABLES_HELD = 64
_CANDIDATES = 64  # replacements drawn at a time


@dataclass(frozen=True)
class OrderSettings:
    """Everything besides the dataset that decides an epoch's order; all of it is part of the fingerprint."""

    seed: int
    global_batch_size: int
    epoch_over: EpochOver = "pairs"
    lanes: int = 1
    block_shards: int = SHARDS_MIXED

    @property
    def lane_share(self) -> int:
        """Items of a lane in every global batch."""
        return self.global_batch_size // self.lanes

    def fingerprint(self, dataset_fingerprint: str) -> str:
        return fingerprint({"dataset": dataset_fingerprint, **asdict(self)})


def order_settings(
    num_shards: int, seed: int, global_batch_size: int, epoch_over: EpochOver = "pairs", lanes: int | None = None, block_shards: int | None = None
) -> OrderSettings:
    """With what is None chosen for a dataset of that many shards.

    Lanes: as many as leave 20 shards each, 64 at most, the global batch a multiple of them. Shards in a block: 64 over all lanes, 4 a lane at least. Neither
    depends on ranks or nodes, so that a run may go on with others.

    Raises ConfigError when the global batch is not a multiple of `lanes`.
    """
    fitting = [count for count in range(1, min(global_batch_size, 4 * MOST_LANES) + 1) if global_batch_size % count == 0]
    if lanes is None:
        lanes = max(count for count in fitting if count <= max(1, min(MOST_LANES, num_shards // SHARDS_PER_LANE)))
    if global_batch_size % lanes:
        raise ConfigError(f"lanes {lanes} do not divide the global_batch_size {global_batch_size}; take one of {', '.join(map(str, fitting))}")
    return OrderSettings(seed, global_batch_size, epoch_over, lanes, block_shards or max(BLOCK_SHARDS, -(-SHARDS_MIXED // lanes)))


@dataclass(frozen=True)
class Items:
    """Items of an epoch, one a row: the number of each in the dataset's own order, its sample, its caption, its random key."""

    number: Integers
    sample: Integers
    caption: Integers
    key: npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Portion:
    """Items [first, end) of a shard, in the shard's own order."""

    shard: int
    first: int
    end: int


@dataclass(frozen=True)
class Block:
    """One block of a lane: where its items lie, in the order of the shards, and how much of it the lane has delivered (0 to 1)."""

    source: int
    epoch: int
    lane: int
    number: int
    portions: tuple[Portion, ...]
    delivered: float


class ItemTable:
    """What the items of a dataset are: all (sample, caption) pairs, or all samples with a caption.

    Args:
        shard_starts: samples before each shard, and in all, `[shards + 1]`.
        shard_items: items of each shard, `[shards]`.
        captions_of: how many captions each sample of a shard has, None where the shard is lost; asked when the shard is first needed.
    """

    def __init__(self, shard_starts: Integers, shard_items: Integers, captions_of: Callable[[int], Captions | None], epoch_over: EpochOver) -> None:
        self.shard_starts, self.epoch_over = shard_starts, epoch_over
        self.item_starts: Integers = np.concatenate([[0], np.cumsum(shard_items, dtype=np.int64)])
        self.captions_of = captions_of
        self.ends: Held[int, npt.NDArray[np.uint32] | None] = Held(self._ends, TABLES_HELD)

    @classmethod
    def of_captions(cls, captions: list[list[int]], epoch_over: EpochOver) -> "ItemTable":
        """From the number of captions of every sample of every shard."""
        counts = [np.array(shard, dtype=np.uint16) for shard in captions]
        items = [int(np.sum(shard) if epoch_over == "pairs" else np.count_nonzero(shard)) for shard in counts]
        return cls(np.cumsum([0, *map(len, counts)], dtype=np.int64), np.array(items, dtype=np.int64), counts.__getitem__, epoch_over)

    @property
    def num_items(self) -> int:
        return int(self.item_starts[-1])

    def located(self, numbers: Integers, keys: npt.NDArray[np.uint64]) -> tuple[Integers, Integers]:
        """(sample, caption) of each item; `keys` draw the caption where an epoch is over images."""
        sample, caption = np.empty_like(numbers), np.empty_like(numbers)
        shards = np.searchsorted(self.item_starts, numbers, side="right") - 1
        for shard in np.unique(shards):
            rows = shards == shard
            place = numbers[rows] - self.item_starts[shard]
            ends, captions = self.ends(int(shard)), None if self.epoch_over == "pairs" else self.captions_of(int(shard))
            if ends is None or (captions is None and self.epoch_over == "images"):  # any sample of the shard: reading it will fail
                sample[rows], caption[rows] = self.shard_starts[shard], 0
                continue
            within = np.searchsorted(ends, place, side="right")
            sample[rows] = self.shard_starts[shard] + within
            if captions is None:
                caption[rows] = place - np.where(within > 0, ends[within - 1], 0)
            else:
                caption[rows] = uniforms(keys[rows], CAPTION, 1)[:, 0] * captions[within]
        return sample, caption

    def samples_of(self, portion: Portion) -> tuple[int, int]:
        """First and last sample, as rows of the shard, that the portion's items belong to."""
        ends = self.ends(portion.shard)
        if ends is None:
            return 0, int(self.shard_starts[portion.shard + 1] - self.shard_starts[portion.shard]) - 1
        first, last = np.searchsorted(ends, [portion.first, portion.end - 1], side="right")
        return int(first), int(last)

    def _ends(self, shard: int) -> npt.NDArray[np.uint32] | None:
        """Items up to the end of each sample; None where the shard is lost."""
        captions = self.captions_of(shard)
        if captions is None:
            return None
        return np.cumsum(captions if self.epoch_over == "pairs" else captions > 0, dtype=np.uint32)


class ShardSequence:
    """One epoch of one dataset, cut into lanes of `items_per_lane` items and those into blocks.

    The cut begins at a random item, so that the few items no lane holds are others each epoch. `source` tells the datasets of a blend apart.
    """

    def __init__(self, table: ItemTable, settings: OrderSettings, epoch: int, items_per_lane: int, source: int = 0) -> None:
        assert table.num_items >= items_per_lane * settings.lanes > 0
        self.table, self.epoch, self.source, self.items_per_lane = table, epoch, source, items_per_lane
        self._key = int(item_keys(settings.seed, epoch, np.array([-1 - source], dtype=np.int64))[0])  # the epoch's own, which no item has
        sizes = np.diff(table.item_starts)
        self._shards = permutation(self._key, SHARD_ORDER, len(sizes)).astype(np.uint32)
        self._ends: Integers = np.cumsum(sizes[self._shards])
        self._first_item = int(hashes(np.array([self._key], dtype=np.uint64), FIRST_ITEM, 1)[0, 0] % np.uint64(table.num_items))
        self.blocks = min(items_per_lane, blocks_per_lane(int(np.count_nonzero(sizes)), settings))

    @property
    def nbytes(self) -> int:
        """Bytes this holds."""
        return self._shards.nbytes + self._ends.nbytes

    def block_at(self, places: Integers) -> Integers:
        """The block each place of a lane lies in."""
        return np.asarray(((places + 1) * self.blocks - 1) // self.items_per_lane, dtype=np.int64)

    def start_of(self, block: Integers | int) -> Integers:
        """The place in its lane where a block starts; blocks differ in size by one item at most."""
        return np.asarray(block * np.int64(self.items_per_lane) // self.blocks, dtype=np.int64)

    def numbers(self, lanes: Integers, places: Integers) -> Integers:
        """The numbers, in the dataset's own order, of the items at these places of these lanes."""
        blocks = self.block_at(places)
        starts = self.start_of(blocks)
        keys = item_keys(self._key, BLOCK_ORDER, lanes * self.blocks + blocks)
        within = permuted(keys, self.start_of(blocks + 1) - starts, places - starts)
        places = (self._first_item + lanes * self.items_per_lane + starts + within) % self.table.num_items
        order = np.searchsorted(self._ends, places, side="right")
        shards = self._shards[order]
        first = self._ends[order] - np.diff(self.table.item_starts)[shards]
        return np.asarray(self.table.item_starts[shards] + places - first, dtype=np.int64)

    def portions(self, lane: int, block: int) -> tuple[Portion, ...]:
        """What the block takes of which shards; a shard comes twice where the cut's two ends meet in it."""
        start = self._first_item + lane * self.items_per_lane + int(self.start_of(block))
        end = start + int(self.start_of(block + 1) - self.start_of(block))
        total = self.table.num_items
        return tuple(portion for lap in (0, total) for portion in self._between(max(start - lap, 0), min(end - lap, total)))

    def _between(self, start: int, end: int) -> list[Portion]:
        found: list[Portion] = []
        order = int(np.searchsorted(self._ends, start, side="right"))
        while start < end:
            shard = int(self._shards[order])
            items = int(self.table.item_starts[shard + 1] - self.table.item_starts[shard])
            first = int(self._ends[order]) - items
            if items:
                stop = min(end, first + items)
                found.append(Portion(shard, start - first, stop - first))
                start = stop
            order += 1
        return found


def blocks_per_lane(num_shards: int, settings: OrderSettings) -> int:
    return max(1, -(-num_shards // (settings.lanes * settings.block_shards)))


def most_portions(epochs: "Epochs", source: int) -> int:
    """Shards that a block of that dataset takes from at most, in the first epoch; about as many in any other."""
    sequence = epochs.sequence((source, 0))
    return max(len(sequence.portions(lane, block)) for lane in range(epochs.settings.lanes) for block in range(sequence.blocks))


class Epochs:
    """All epochs of one dataset, or of several that are mixed: what every global batch of the run consists of.

    An epoch has as many full global batches as all datasets have items together. One dataset alone begins its order anew with each of them; mixed, each
    dataset does so whenever its own items are used up, and its draws are numbered through from the start of the run. Safe to use from several threads.
    """

    def __init__(self, tables: Sequence[ItemTable], settings: OrderSettings, shares: Shares | None = None) -> None:
        self.tables, self.settings, self.shares = tables, settings, shares or Shares([Fraction(1)], settings.lanes)
        self.item_starts: Integers = np.cumsum([0, *(table.num_items for table in tables)], dtype=np.int64)
        self.sample_starts: Integers = np.cumsum([0, *(int(table.shard_starts[-1]) for table in tables)], dtype=np.int64)
        self.num_items = int(self.item_starts[-1])
        self.steps = self.num_items // settings.global_batch_size
        alone = [self.steps * settings.lane_share]
        self.items_per_lane = alone if len(tables) == 1 else [table.num_items // settings.lanes for table in tables]
        self.sequence: Held[tuple[int, int], ShardSequence] = Held(self._sequence, 3 * len(tables))  # this epoch's, the next one's, and one on its way out

    def order(self, epoch: int) -> "EpochOrder":
        return EpochOrder(self, epoch)

    def drawn(self, epoch: int, step: int) -> list[int]:
        """Items of each dataset in all global batches before this one."""
        slots = self._slots(epoch, step)
        return [int(count) for count in self.shares.taken(np.full(self.settings.lanes, slots)).sum(axis=0)]

    def blocks(self, epoch: int, step: int, lane: int) -> list[Block]:
        """The block of each dataset that the lane is in when the step begins."""
        taken = self.shares.taken(np.full(self.settings.lanes, self._slots(epoch, step)))[lane]
        return [self._block_at(source, lane, int(count)) for source, count in enumerate(taken)]

    def after(self, block: Block) -> Block:
        """The block the lane goes on with."""
        end = int(self.sequence((block.source, block.epoch)).start_of(block.number + 1))
        return self._block_at(block.source, block.lane, block.epoch * self.items_per_lane[block.source] + end)

    def _slots(self, epoch: int, step: int) -> int:
        """Items every lane has delivered before this step."""
        return (epoch * self.steps + step) * self.settings.lane_share

    def _block_at(self, source: int, lane: int, count: int) -> Block:
        epoch, place = divmod(count, self.items_per_lane[source])
        sequence = self.sequence((source, epoch))
        number = int(sequence.block_at(np.array(place)))
        start, end = int(sequence.start_of(number)), int(sequence.start_of(number + 1))
        return Block(source, epoch, lane, number, sequence.portions(lane, number), (place - start) / (end - start))

    def _sequence(self, key: tuple[int, int]) -> ShardSequence:
        source, epoch = key
        return ShardSequence(self.tables[source], self.settings, epoch, self.items_per_lane[source], source)


class EpochOrder:
    """Position -> item of one epoch."""

    def __init__(self, epochs: Epochs, epoch: int) -> None:
        self.epochs, self.epoch = epochs, epoch
        self.settings, self.steps = epochs.settings, epochs.steps

    def item(self, position: int) -> tuple[int, int]:
        """(sample, caption) at a position of the epoch."""
        items = self.items(np.array([position]))
        return int(items.sample[0]), int(items.caption[0])

    def items(self, positions: Integers) -> Items:
        """The items at these positions, each in [0, steps x global_batch_size); datasets that are mixed are numbered through."""
        lanes, sources, counts = self._draws(positions)
        number, sample, caption = (np.empty(len(positions), dtype=np.int64) for _ in range(3))
        keys = np.empty(len(positions), dtype=np.uint64)
        per_lane = np.array(self.epochs.items_per_lane, dtype=np.int64)[sources]
        epochs, places = np.divmod(counts, per_lane)
        for source, epoch in sorted(set(zip(sources.tolist(), epochs.tolist(), strict=True))):
            rows = (sources == source) & (epochs == epoch)
            numbers = self.epochs.sequence((source, epoch)).numbers(lanes[rows], places[rows])
            number[rows] = self.epochs.item_starts[source] + numbers
            keys[rows] = item_keys(self.settings.seed, epoch, number[rows])
            samples, caption[rows] = self.epochs.tables[source].located(numbers, keys[rows])
            sample[rows] = self.epochs.sample_starts[source] + samples
        return Items(number, sample, caption, keys)

    def sources(self, positions: Integers) -> Integers:
        """The dataset each position draws from."""
        return self._draws(positions)[1]

    def replacement(self, position: int, attempt: int) -> int:
        """The position, of the same dataset, whose item stands in for a damaged one: attempts 1, 2, ... until one is healthy."""
        key = item_keys(self.settings.seed, self.epoch, np.array([position]))
        total = np.uint64(self.steps * self.settings.global_batch_size)
        source = self.sources(np.array([position]))[0]
        fitting, tried = 0, 0
        while True:  # a dataset's share of the positions is its weight: this ends
            drawn = (hashes(key, REPLACEMENT, tried + _CANDIDATES)[0, tried:] % total).astype(np.int64)
            same = drawn[self.sources(drawn) == source]
            if fitting + len(same) >= attempt:
                return int(same[attempt - fitting - 1])
            fitting, tried = fitting + len(same), tried + _CANDIDATES

    def _draws(self, positions: Integers) -> tuple[Integers, Integers, Integers]:
        """Of each position: its lane, its dataset, and how many items of that dataset the lane has delivered before it."""
        step, offset = np.divmod(positions, self.settings.global_batch_size)
        lane, within = np.divmod(offset, self.settings.lane_share)
        slots = (self.epoch * self.steps + step) * self.settings.lane_share + within
        return lane, *self.epochs.shares.draws(lane, slots)
