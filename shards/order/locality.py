"""Which lanes a node reads, how many bytes of their blocks its cache must hold, and how often a byte is fetched."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.core import storage
from pipeline.core.errors import ConfigError
from shards.dataset import Dataset, Part
from shards.order.epoch import Block, Epochs, OrderSettings

log = logging.getLogger(__name__)

GIB = 2**30
MOST_AMPLIFICATION = 1.05  # what cut shards and whole pieces alone may cost


@dataclass(frozen=True)
class Split:
    """How a global batch is split: micro-batch a of rank r is slice a x world_size + r of `micro_batch_size` items. Ranks of a node follow one another."""

    micro_batch_size: int
    accumulation_steps: int = 1
    world_size: int = 1
    ranks_per_node: int = 1

    @property
    def nodes(self) -> int:
        return -(-self.world_size // self.ranks_per_node)

    def lanes_of_node(self, node: int, settings: OrderSettings) -> list[int]:
        """The lanes that the node's ranks read from, in every global batch."""
        first = node * self.ranks_per_node
        return self._lanes(first, min(first + self.ranks_per_node, self.world_size), settings)

    def lanes_of_rank(self, rank: int, settings: OrderSettings) -> list[int]:
        return self._lanes(rank, rank + 1, settings)

    def _lanes(self, first_rank: int, end_rank: int, settings: OrderSettings) -> list[int]:
        found = set[int]()
        for accumulation in range(self.accumulation_steps):
            start, end = ((accumulation * self.world_size + rank) * self.micro_batch_size for rank in (first_rank, end_rank))
            found.update(range(start // settings.lane_share, -(-end // settings.lane_share)))
        return sorted(found)


def bytes_in_use(parts: Sequence[Part], epochs: Epochs, lanes: int, piece_bytes: int) -> int:
    """What a cache of aligned pieces must hold so that nothing is fetched twice within a block, for a node that serves that many lanes.

    No epoch needs more: each block is taken to consist of the shards with the most bytes an item, and to be cut at both ends. All lanes of one dataset change
    to their next blocks at the same step, so the old ones make room for them; datasets that are mixed change at different steps, so one of them counts twice.
    Datasets on local disks are read where they are and need none.
    """
    needs = [_bytes_of_blocks(part.dataset, epochs, number, lanes, piece_bytes) for number, part in enumerate(parts) if is_remote(part.dataset)]
    return sum(needs) + (max(needs) if len(parts) > 1 and needs else 0)


def is_remote(dataset: Dataset) -> bool:
    return not storage.is_local(dataset.folder)


def _bytes_of_blocks(dataset: Dataset, epochs: Epochs, source: int, lanes: int, piece_bytes: int) -> int:
    sequence = epochs.sequence((source, 0))
    wanted = lanes * -(-sequence.items_per_lane // sequence.blocks)
    items = np.diff(sequence.table.item_starts)
    sizes = np.array([shard.bytes for shard in dataset.manifest.shards], dtype=np.int64)
    order = np.argsort(-(sizes / np.maximum(items, 1)), kind="stable")
    order = order[items[order] > 0]
    before = np.cumsum(items[order]) - items[order]
    taken = np.clip(wanted - before, 0, items[order])
    in_blocks = float((taken * (sizes[order] / items[order])).sum())
    return min(int(in_blocks) + 2 * lanes * piece_bytes, int(sizes.sum()))


def refuse_small_cache(parts: Sequence[Part], epochs: Epochs, split: Split, cache_bytes: int, piece_bytes: int) -> None:
    """Raises ConfigError when some node's lanes do not fit the cache, with what would fit."""
    settings = epochs.settings
    most = max(len(split.lanes_of_node(node, settings)) for node in range(split.nodes))
    needed = bytes_in_use(parts, epochs, most, piece_bytes)
    if needed <= cache_bytes:
        return
    ways = [f"set cache_gib to {-(-needed * 10 // GIB) / 10:g}"]
    for lanes, block_shards in _smaller(settings):
        smaller = OrderSettings(settings.seed, settings.global_batch_size, settings.epoch_over, lanes, block_shards)
        served = max(len(split.lanes_of_node(node, smaller)) for node in range(split.nodes))
        if bytes_in_use(parts, Epochs(epochs.tables, smaller, epochs.shares.with_lanes(lanes)), served, piece_bytes) <= cache_bytes:
            ways.append(f"lanes to {lanes} and block_shards to {block_shards}")
            break
    raise ConfigError(
        f"cache_gib is {cache_bytes / GIB:.3g}, but a node that serves {most} of {settings.lanes} lanes of {settings.block_shards} shards a block needs "
        f"{needed / GIB:.3g}, or shards would be fetched again and again; {', or '.join(ways)}"
    )


def _smaller(settings: OrderSettings) -> list[tuple[int, int]]:
    """Smaller blocks first, since lanes are what nodes share the data by; then fewer lanes."""
    halves = [settings.block_shards >> shift for shift in range(1, settings.block_shards.bit_length())]
    fewer = [lanes for lanes in range(settings.lanes - 1, 0, -1) if settings.lanes % lanes == 0]
    return [(settings.lanes, block_shards) for block_shards in halves] + [(lanes, 1) for lanes in fewer]


def amplification(parts: Sequence[Part], epochs: Epochs, split: Split, piece_bytes: int, epoch: int = 0) -> float:
    """Bytes that all nodes fetch in an epoch over the bytes of the shards, when every node's cache holds what its lanes have in use.

    Every lane's bytes are rounded to whole pieces and counted for each node that reads from it. Needs no index: within a shard, bytes are taken to be spread
    evenly over the items.
    """
    lanes = [lane for node in range(split.nodes) for lane in split.lanes_of_node(node, epochs.settings)]
    fetched = sum(lanes.count(lane) * _lane_bytes(parts, epochs, epoch, lane, piece_bytes) for lane in sorted(set(lanes)))
    return fetched / sum(shard.bytes for part in parts for shard in part.dataset.manifest.shards)


def warn_of_shared_lanes(parts: Sequence[Part], epochs: Epochs, split: Split, piece_bytes: int) -> None:
    """Say how often the nodes together fetch a byte, where they share lanes: it is allowed, and costs the store."""
    settings = epochs.settings
    if (often := amplification(parts, epochs, split, piece_bytes)) <= MOST_AMPLIFICATION:
        return
    log.warning(
        "%d nodes fetch each byte %.2f times an epoch, since they share lanes, or lanes have few shards (%d lanes of %d shards); best are lanes that are a "
        "multiple of nodes x accumulation steps (%d), with 20 shards or more each",
        split.nodes, often, settings.lanes, sum(len(part.dataset.manifest.shards) for part in parts) // settings.lanes, split.nodes * split.accumulation_steps,
    )  # fmt: skip


def _lane_bytes(parts: Sequence[Part], epochs: Epochs, epoch: int, lane: int, piece_bytes: int) -> int:
    total = 0
    for source, part in enumerate(parts):
        sequence = epochs.sequence((source, epoch))
        pieces = set[tuple[int, int]]()
        for block in range(sequence.blocks):
            for portion in sequence.portions(lane, block):
                size = part.dataset.manifest.shards[portion.shard].bytes
                items = int(sequence.table.item_starts[portion.shard + 1] - sequence.table.item_starts[portion.shard])
                first, last = portion.first * size // items // piece_bytes, (portion.end * size - 1) // items // piece_bytes
                pieces.update((portion.shard, piece) for piece in range(first, last + 1))
        total += sum(min(piece_bytes, part.dataset.manifest.shards[shard].bytes - piece * piece_bytes) for shard, piece in pieces)
    return total


def byte_ranges(parts: Sequence[Part], epochs: Epochs, block: Block) -> list[tuple[Dataset, int, int, int]]:
    """(dataset, shard, start, end) of the bytes that the block's items lie in; a cut shard's index is read for it."""
    dataset, table = parts[block.source].dataset, epochs.tables[block.source]
    return [(dataset, portion.shard, *dataset.byte_range(portion.shard, *table.samples_of(portion))) for portion in block.portions]
