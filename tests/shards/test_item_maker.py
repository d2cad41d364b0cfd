"""Where a batch's texts and pictures are made."""

import threading
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from pipeline.core.errors import DataError
from shards.item_maker import MadeItems
from shards.loader import ShardLoader
from shards.order.blend import parse_blend
from shards.order.mixing import open_blend
from shards.pixels.transforms import PretrainTransform

from .conftest import MakeDataset


def test_captions_are_cleaned_and_batches_collated_off_the_thread_that_trains(make_dataset: MakeDataset) -> None:
    def collate(items: MadeItems) -> tuple[str, list[str]]:
        return threading.current_thread().name, [item.caption for item in items]

    loader = ShardLoader(make_dataset([9, 5]), transform=PretrainTransform(16), collate=collate, global_batch_size=4, micro_batch_size=4, num_workers=2)
    batches = [batch for steps, _ in islice(loader.from_position(loader.start()), 5) for batch in steps]
    loader.close()
    assert all(thread != threading.current_thread().name for thread, _ in batches)
    captions = [caption for _, made in batches for caption in made]
    assert all(caption.startswith("picture ") and not set(caption) & set(",!P") for caption in captions)


def test_a_dataset_of_a_blend_whose_samples_are_all_damaged_is_named_alone(make_dataset: MakeDataset, tmp_path: Path) -> None:
    healthy, damaged = make_dataset([9, 5], str(tmp_path / "healthy")).folder, make_dataset([9], str(tmp_path / "damaged")).folder
    tar = Path(damaged) / "00000.tar"
    tar.write_bytes(bytes(tar.stat().st_size))
    blend = open_blend(parse_blend({"blend": [{"dataset": healthy, "weight": 1, "name": "one"}, {"dataset": damaged, "weight": 1, "name": "two"}]}))
    loader = ShardLoader(blend, transform=PretrainTransform(16), collate=len, global_batch_size=4, micro_batch_size=4)
    with pytest.raises(DataError) as raised:
        next(loader.from_position(loader.start()))
    assert str(raised.value).startswith(f"{damaged}: 100 damaged samples in a row")


def test_the_pictures_of_a_batch_lie_in_one_array(make_dataset: MakeDataset) -> None:
    kept: list[MadeItems] = []
    loader = ShardLoader(make_dataset([9, 5]), transform=PretrainTransform(16), collate=kept.append, global_batch_size=4, micro_batch_size=4)
    for _ in islice(loader.from_position(loader.start()), 3):
        pass
    for items in kept:
        assert items.images.shape == (4, 16, 16, 3)
        assert all(np.shares_memory(item.image, items.images[row]) for row, item in enumerate(items))
        assert [item.key for item in items[1:]] == [item.key for item in list(items)[1:]]
