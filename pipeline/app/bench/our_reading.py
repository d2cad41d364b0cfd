"""Our side of the reading benchmarks, through the loader that training uses."""

import multiprocessing
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import wait
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import torch

from pipeline.app.bench.albef_reading import BATCH
from pipeline.core.errors import AlbefError
from shards.dataset import Dataset
from shards.item_maker import MadeItems
from shards.loader import Position, ShardLoader
from shards.pixels.decode import decode_image
from shards.pixels.transforms import MEAN, STD, PretrainTransform, Transform

RESOLUTION = 256


def augmenting() -> Transform:
    """All of ALBEF's transform but the normalisation."""
    return PretrainTransform(RESOLUTION)


def cropping() -> Transform:
    """Crop, resize and flip; RandAugment and normalisation are left to the device."""
    return PretrainTransform(RESOLUTION, randaugment=False)


def uint8_batch(items: MadeItems) -> torch.Tensor:
    """uint8 [B, 3, R, R], as training's batches hold them."""
    return torch.from_numpy(items.images).permute(0, 3, 1, 2)


def float_batch(items: MadeItems) -> torch.Tensor:
    """float32 [B, 3, R, R], normalised on the CPU as the peer's."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return uint8_batch(items).float().div_(255).sub_(mean).div_(std)


def loader_of(
    dataset: Dataset, transform: Transform, collate: Callable[[MadeItems], Any] = uint8_batch, num_workers: int = 0, rank: int = 0, world_size: int = 1
) -> ShardLoader[Any]:
    return ShardLoader(
        dataset,
        transform=transform,
        collate=collate,
        global_batch_size=BATCH * world_size,
        micro_batch_size=BATCH,
        rank=rank,
        world_size=world_size,
        num_workers=num_workers,
    )


def batches_from(loader: ShardLoader[Any], step: int = 0) -> Iterator[Any]:
    return (micro_batches[0] for micro_batches, _ in loader.from_position(Position(0, step, loader.fingerprint)))


def pictures_in(batches: Iterator[Any], number: int) -> int:
    """Draw batches until there are `number` pictures; how many there were."""
    seen = 0
    while seen < number:
        seen += len(next(batches))
    return seen


def read_all(dataset: Dataset) -> int:
    """Every sample through its index, checked; how many there are."""
    return sum(len(dataset.read(sample).image) > 0 for sample in range(dataset.num_samples))


def decode_first(dataset: Dataset, number: int) -> int:
    return sum(decode_image(dataset.read(sample).image).size > 0 for sample in range(number))


def pictures_per_wall_s(folder: Path, processes: int, pictures: int) -> float:
    """Augmented pictures a second of that many processes together, each a rank of one world; their start does not count."""
    context = multiprocessing.get_context("spawn")
    start, seconds = context.Barrier(processes), context.Array("d", processes)
    ranks = [context.Process(target=_rank, args=(str(folder), rank, processes, pictures // processes, start, seconds)) for rank in range(processes)]
    for rank in ranks:
        rank.start()
    while alive := [rank.sentinel for rank in ranks if rank.is_alive()]:
        wait(alive)
        if any(rank.exitcode for rank in ranks):
            start.abort()  # else the others would wait for it
    if any(rank.exitcode for rank in ranks):
        raise AlbefError("a process of the benchmark died; its traceback is above")
    return pictures // processes * processes / float(max(seconds[:]))


def _rank(folder: str, rank: int, processes: int, pictures: int, start: Barrier, seconds: Any) -> None:
    torch.set_num_threads(1)
    batches = batches_from(loader_of(Dataset.open(folder), augmenting(), rank=rank, world_size=processes))
    next(batches)
    start.wait()
    began = time.perf_counter()
    number = pictures_in(batches, pictures)
    seconds[rank] = (time.perf_counter() - began) * pictures / number
