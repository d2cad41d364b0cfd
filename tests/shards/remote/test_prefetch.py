"""A node asks for what its lanes will need next, and a rank opens only what it needs."""

import time
from itertools import islice
from pathlib import Path

import delivering
import pytest
from waiting import wait_until

from pipeline.core.errors import DataError
from shards import manifest
from shards.dataset import Dataset
from shards.manifest import ShardEntry
from shards.remote.ranges import RangeReader

from ..conftest import MakeDataset, every_index

PIECE = 4096


def slow_epoch(folder: str, cache: Path, cache_bytes: int) -> tuple[RangeReader, list[list[delivering.Digest]]]:
    """An epoch whose trainer takes its time, as trainers do, and what was asked for comes meanwhile."""
    reader = RangeReader(cache_bytes, str(cache), piece_bytes=PIECE, requests_in_flight=2)
    one = delivering.loader(Dataset.open(folder, reader=reader), batch=6, lanes=2, block_shards=1, num_workers=1)
    steps = []
    for batches, _ in islice(one.from_position(one.start()), one.steps_per_epoch):
        steps.append(batches[0])
        time.sleep(0.03)
        wait_until(lambda: not reader._announced)
    one.close()
    reader.close()
    return reader, steps


def test_the_next_block_is_there_when_a_lane_comes_to_it(make_dataset: MakeDataset, s3_bucket: str, tmp_path: Path) -> None:
    local, remote = make_dataset([12] * 8), make_dataset([12] * 8, f"{s3_bucket}/set")
    everything = sum(shard.bytes for shard in remote.manifest.shards)
    with_room, steps = slow_epoch(remote.folder, tmp_path / "a", 4 * everything)
    assert steps == delivering.global_batches(local.folder, len(steps), batch=6, lanes=2, block_shards=1)
    exactly, again = slow_epoch(remote.folder, tmp_path / "b", everything // 2)  # holds the blocks in use and hardly more
    assert steps == again
    assert with_room.counters["cache_misses"] < exactly.counters["cache_misses"] / 2
    assert with_room.counters["bytes_fetched"] <= 1.3 * everything  # with the first blocks of the next epoch
    assert exactly.counters["bytes_fetched"] <= 1.3 * everything


def test_opening_asks_nothing_of_the_shards(tmp_path: Path) -> None:
    """Of 1,400 shards that are not there, the first one needed is named."""
    entries = [ShardEntry(f"{number:05d}", 10_000, 10_000, 5_000_000, "0" * 64, "", 10_000) for number in range(1400)]
    manifest.publish(str(tmp_path), entries, {}, {})
    dataset = Dataset.open(str(tmp_path))
    for epoch_over in ("pairs", "images"):
        one = delivering.loader(dataset, batch=4096, world_size=512, rank=77, epoch_over=epoch_over)
        assert (one.items_per_epoch, one.steps_per_epoch) == (14_000_000, 3417)
        assert one.settings.lanes == 64
        assert dataset.indexes.count <= 12
    assert len(dataset.indexes) == 0
    with pytest.raises(DataError, match=r"0\d{4}\.tar: not found"):
        dataset.read(1_234_567)
    with pytest.raises(DataError, match=r"00000\.tar: not found"):
        every_index(dataset)


def test_a_rank_opens_the_shards_of_its_own_lanes_alone(make_dataset: MakeDataset) -> None:
    dataset = make_dataset([12] * 16)
    one = delivering.loader(dataset, batch=8, world_size=4, rank=2, lanes=4, block_shards=2)
    opened = set()
    dataset.indexes.count = 99
    for _ in islice(one.from_position(one.start()), one.steps_per_epoch):
        opened |= set(dataset.indexes._held)
    assert len(opened) <= 16 // 4 + 1


def test_a_manifest_that_does_not_count_captioned_samples_is_still_read(make_dataset: MakeDataset) -> None:
    folder = make_dataset([12, 5]).folder
    path = Path(folder) / "manifests" / "00001.json"
    counted = delivering.global_batches(folder, 2, batch=4, epoch_over="images")
    path.write_text(path.read_text().replace('"captioned": 12,', "").replace('"captioned": 5,', ""))
    assert Dataset.open(folder).manifest.shards[0].captioned is None
    assert delivering.global_batches(folder, 2, batch=4, epoch_over="images") == counted
