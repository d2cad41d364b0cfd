"""Positions of an epoch to the items a batch is collated from: read, decode, transform, and replace what is damaged."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.core.errors import DataError
from shards.dataset import DamagedSample, Dataset, Sample
from shards.decode import decode_image
from shards.order import EpochOrder, Items
from shards.quarantine import Damage, Quarantine
from shards.random_stream import TRANSFORM, uniforms
from shards.stage_times import StageTimes
from shards.text_rules import pre_caption
from shards.transforms import Draws, Picture, Transform

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
class ItemMaker:
    """Makes the items of any positions; safe to use from several threads."""

    dataset: Dataset
    transform: Transform
    quarantine: Quarantine
    max_words: int
    stage_times: StageTimes

    def __call__(self, order: EpochOrder, positions: npt.NDArray[np.int64]) -> tuple[list[Item], list[Damage]]:
        """The items, in the order of the positions, and the damage met on the way."""
        damages: list[Damage] = []
        placed = order.items(positions)
        draws = uniforms(placed.key, TRANSFORM, self.transform.num_draws)
        items = [self._item(order, int(position), placed, row, draws[row], damages.append) for row, position in enumerate(positions)]
        return items, damages

    def _item(self, order: EpochOrder, position: int, placed: Items, row: int, draws: Draws, on_damage: Callable[[Damage], None]) -> Item:
        """The item at a position, or the first healthy replacement, which keeps the position's own random key."""
        sample, caption = int(placed.sample[row]), int(placed.caption[row])
        for attempt in range(1, _MAX_ATTEMPTS + 1):
            try:
                read, image = self._decoded(sample)
                text = pre_caption(read.captions[caption], self.max_words)
                with self.stage_times.busy("decode"):
                    transformed = self.transform(image, draws)
                return Item(int(placed.key[row]), read.key, sample, caption, transformed, text)
            except DamagedSample as damage:
                on_damage(Damage(sample, damage.key, str(damage), order.epoch, position))
            sample, caption = order.item(order.replacement(position, attempt))
        raise DataError(f"{self.dataset.folder}: {_MAX_ATTEMPTS} damaged samples in a row; `albef shards verify` lists them")

    def _decoded(self, sample: int) -> tuple[Sample, Picture]:
        if entry := self.quarantine.of(sample):
            raise DamagedSample(entry["reason"], entry["key"])
        with self.stage_times.busy("read"):
            read = self.dataset.read(sample)
        try:
            with self.stage_times.busy("decode"):
                return read, decode_image(read.image)
        except DataError as error:
            raise DamagedSample(f"{self.dataset.name_of(sample)} ({read.key}): {error}", read.key) from error
