"""Positions of an epoch to the items a batch is collated from: read, decode, transform, and replace what is damaged."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import numpy.typing as npt

from pipeline.core.errors import DataError
from shards.dataset import DamagedSample, Dataset, Sample
from shards.order.epoch import EpochOrder, Items
from shards.order.mixing import MixedDataset
from shards.pixels import native
from shards.pixels.transforms import Draws, Picture, Transform
from shards.quarantine import Damage, Quarantine
from shards.random_stream import TRANSFORM, uniforms
from shards.stage_times import StageTimes
from shards.text_rules import pre_caption

_MAX_ATTEMPTS = 100  # damaged replacements in a row: then it is the dataset that is damaged


@dataclass(frozen=True)
class Item:
    """One (picture, caption): `image` uint8 [R, R, 3], `key` the uint64 that all its random draws hang on."""

    key: int
    sample_key: str
    sample: int
    caption_index: int
    image: Picture
    caption: str


@dataclass(frozen=True)
class MadeItems(Sequence[Item]):
    """Items, and `images`, uint8 [N, R, R, 3], whose rows are their pictures: a batch needs no copy of them."""

    items: list[Item]
    images: Picture

    @overload
    def __getitem__(self, place: int) -> Item: ...
    @overload
    def __getitem__(self, place: slice) -> list[Item]: ...
    def __getitem__(self, place: int | slice) -> Item | list[Item]:
        return self.items[place]

    def __len__(self) -> int:
        return len(self.items)


@dataclass(frozen=True)
class ItemMaker:
    """Makes the items of any positions; safe to use from several threads."""

    dataset: Dataset | MixedDataset
    transform: Transform
    quarantine: Quarantine
    max_words: int
    stage_times: StageTimes

    def __post_init__(self) -> None:
        native.tell_what_is_missing()

    def __call__(self, order: EpochOrder, positions: npt.NDArray[np.int64]) -> tuple[MadeItems, list[Damage]]:
        """The items, in the order of the positions, and the damage met on the way."""
        damages: list[Damage] = []
        placed = order.items(positions)
        draws = uniforms(placed.key, TRANSFORM, self.transform.num_draws)
        images = np.empty((len(positions), self.transform.resolution, self.transform.resolution, 3), np.uint8)
        items = [self._item(order, int(position), placed, row, draws[row], images[row], damages.append) for row, position in enumerate(positions)]
        return MadeItems(items, images), damages

    def _item(self, order: EpochOrder, position: int, placed: Items, row: int, draws: Draws, out: Picture, on_damage: Callable[[Damage], None]) -> Item:
        """The item at a position, or the first healthy replacement, which keeps the position's own random key; its picture is written to `out`."""
        sample, caption = int(placed.sample[row]), int(placed.caption[row])
        for attempt in range(1, _MAX_ATTEMPTS + 1):
            try:
                return self._made(int(placed.key[row]), sample, caption, draws, out)
            except DamagedSample as damage:
                on_damage(Damage(sample - damage.before, damage.key, str(damage), order.epoch, position, damage.samples))
            sample, caption = order.item(order.replacement(position, attempt))
        part = self.dataset.parts[self.dataset.part_of(sample)[0]]  # replacements come from the same one
        raise DataError(f"{part.dataset.folder}: {_MAX_ATTEMPTS} damaged samples in a row; `albef shards verify` lists them")

    def _made(self, key: int, sample: int, caption: int, draws: Draws, out: Picture) -> Item:
        if entry := self.quarantine.of(sample):
            raise DamagedSample(entry["reason"], entry["key"], sample - entry["sample"], entry["samples"])
        read, pixels = self._decoded(sample, draws)
        with self.stage_times.busy("transform"):
            image = self.transform.finish(pixels, draws, out)
        return Item(key, read.key, sample, caption, image, pre_caption(read.captions[caption], self.max_words))

    def _decoded(self, sample: int, draws: Draws, fresh: bool = False) -> tuple[Sample, Picture]:
        with self.stage_times.busy("read"):
            read = self.dataset.read(sample, fresh)
        try:
            with self.stage_times.busy("decode"):
                return read, self.transform.decode(read.image, draws)
        except DataError as error:
            if not fresh:  # the checksum was right, but memory may fail between check and decoding
                return self._decoded(sample, draws, fresh=True)
            raise DamagedSample(f"{self.dataset.name_of(sample)} ({read.key}): {error}", read.key) from error
