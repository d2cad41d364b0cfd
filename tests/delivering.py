"""What a loader delivers, as hashes that can be compared between runs, ranks and processes."""

import hashlib
from itertools import islice
from typing import Any

from shards.dataset import Dataset
from shards.item_maker import Item
from shards.loader import Position, ShardLoader
from shards.order.blend import parse_blend
from shards.order.mixing import MixedDataset, open_blend
from shards.pixels.transforms import PretrainTransform

Digest = tuple[int, str, int, int, str, str]
Source = str | dict[str, Any]  # as training.dataset has it


def digests(items: list[Item]) -> list[Digest]:
    """Everything of the items, pictures as hashes."""
    return [(i.key, i.sample_key, i.sample, i.caption_index, i.caption, hashlib.sha256(i.image.tobytes()).hexdigest()) for i in items]


def opened(source: Source) -> Dataset | MixedDataset:
    return open_blend(parse_blend(source))


def loader(dataset: Dataset | MixedDataset, batch: int = 12, world_size: int = 1, accumulation: int = 1, **options: Any) -> ShardLoader[list[Digest]]:
    micro = batch // (world_size * accumulation)
    return ShardLoader(
        dataset, transform=PretrainTransform(16), collate=digests, global_batch_size=batch, micro_batch_size=micro,
        accumulation_steps=accumulation, world_size=world_size, seed=5, **options,
    )  # fmt: skip


def of_rank(source: Source, rank: int, steps: int, start: dict[str, Any] | None = None, **options: Any) -> list[list[list[Digest]]]:
    """Steps x micro-batches x items of one rank that opens the data itself, as a process of its own does."""
    one = loader(opened(source), rank=rank, **options)
    position = Position(**start) if start else one.start()
    delivered = [batches for batches, _ in islice(one.from_position(position), steps)]
    one.close()
    return delivered


def joined(by_rank: list[list[list[list[Digest]]]]) -> list[list[Digest]]:
    """Global batches, put together from all ranks by the slice rule."""
    return [[item for micro_batches in zip(*step, strict=True) for part in micro_batches for item in part] for step in zip(*by_rank, strict=True)]


def global_batches(source: Source, steps: int, start: dict[str, Any] | None = None, world_size: int = 1, **options: Any) -> list[list[Digest]]:
    """All ranks one after the other."""
    return joined([of_rank(source, rank, steps, start, world_size=world_size, **options) for rank in range(world_size)])


def sha256_of(batches: list[list[Digest]]) -> list[str]:
    """One hash a global batch."""
    return [hashlib.sha256(repr(batch).encode()).hexdigest() for batch in batches]
