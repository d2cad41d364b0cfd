"""Pairs that a run does not learn from, the same ones whenever and by however many ranks they are read."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from pipeline.core.errors import ConfigError, DataError
from shards.dataset import Dataset
from shards.item_maker import ItemMaker
from shards.order.epoch import Epochs, order_settings
from shards.pixels.transforms import EvalTransform
from shards.quarantine import Damage, Quarantine
from shards.remote.ranges import RangeReader
from shards.stage_times import StageTimes
from shards.text_rules import MAX_WORDS
from training.batch import Batch
from training.data import Collate
from training.distributed import World
from training.tokenizer import Tokenizer

SEED = 0  # of choice, masks and negatives; not the run's, so that runs compare
AHEAD = 2  # groups that are decoded while one is computed


def open_held_out(folder: str, manifest: int | None, world: World, reader: RangeReader) -> Dataset:
    """With this manifest, or the newest that rank 0 finds: another rank may already see a newer one. Every rank must call.

    Raises:
        DataError: there is no dataset, or its manifest is damaged; FailedElsewhere: on another rank.
    """

    def opened(number: int | None) -> Dataset:
        try:
            return Dataset.open(folder, number, reader=reader)
        except DataError as error:
            raise type(error)(f"training.validation.dataset: {error}") from error

    number = world.from_first(world.together(lambda: opened(manifest).manifest.number if world.rank == 0 else None))
    return world.together(lambda: opened(number))


class HeldOut:
    """Up to `max_pairs` pairs in `num_groups` groups of `group_size`, of every picture at most one caption.

    Pictures are resized as in evaluation; masks and negatives hang on the pair alone. All of it is a function of the dataset, `max_pairs` and `group_size`.

    Raises:
        ConfigError: there are fewer than two pairs.
    """

    def __init__(
        self, dataset: Dataset, tokenizer: Tokenizer, *, image_size: int, max_tokens: int, mlm_probability: float, max_pairs: int, group_size: int
    ) -> None:
        table = dataset.item_table("images")
        num_pairs = min(max_pairs, table.num_items)
        if num_pairs < 2:
            raise ConfigError(
                f"training.validation: {num_pairs} pair(s) of {dataset.folder} leave nothing to tell them from; take max_pairs or a dataset above 1"
            )
        self.group_size = min(group_size, num_pairs)
        self.num_groups = num_pairs // self.group_size
        self._order = Epochs([table], order_settings(len(dataset.manifest.shards), SEED, self.group_size, "images", lanes=1)).order(0)
        self._quarantine = Quarantine()
        self._make_items = ItemMaker(dataset, EvalTransform(image_size), self._quarantine, MAX_WORDS, StageTimes())
        self._collate = Collate(tokenizer, max_tokens, mlm_probability, self.group_size)

    @property
    def num_pairs(self) -> int:
        return self.num_groups * self.group_size

    def groups(self, rank: int, world_size: int) -> Iterator[Batch]:
        """This rank's groups, a batch each: number rank, rank + world_size, ...; as many on every rank, so the last one may come again at the end."""
        numbers = [min(first + rank, self.num_groups - 1) for first in range(0, self.num_groups, world_size)]
        making: deque[Future[tuple[Batch, list[Damage]]]] = deque()
        with ThreadPoolExecutor(AHEAD, thread_name_prefix="albef-held-out") as pool:
            for number in numbers:
                making.append(pool.submit(self._made, number))
                if len(making) > AHEAD:
                    yield self._taken(making.popleft())
            while making:
                yield self._taken(making.popleft())

    def _made(self, number: int) -> tuple[Batch, list[Damage]]:
        items, damages = self._make_items(self._order, number * self.group_size + np.arange(self.group_size))
        return self._collate(items), damages

    def _taken(self, made: Future[tuple[Batch, list[Damage]]]) -> Batch:
        """A damaged pair has been replaced by another, always the same; it is told once."""
        batch, damages = made.result()
        self._quarantine.record(damages)
        return batch
