"""What cannot be delivered is read once more, replaced and listed; ranks that count apart count together what one would have counted."""

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import Stopped
from shards import dataset as dataset_module
from shards import index, layout, manifest, writer
from shards.dataset import DamagedSample, DamagedShard, Dataset
from shards.loader import Position, ShardLoader
from shards.pixels.transforms import PretrainTransform
from shards.quarantine import Damage, Quarantine, by_shard, num_samples
from shards.remote.ranges import RangeReader

from .conftest import MakeDataset, samples

BATCH = 24


def loader(dataset: Dataset, world_size: int = 1, rank: int = 0, accumulation: int = 1, **options: Any) -> ShardLoader[list[int]]:
    return ShardLoader(
        dataset, transform=PretrainTransform(16), collate=lambda items: [item.sample for item in items], global_batch_size=BATCH,
        micro_batch_size=BATCH // (world_size * accumulation), accumulation_steps=accumulation, world_size=world_size, rank=rank, seed=5, **options,
    )  # fmt: skip


@pytest.fixture
def damaged(make_dataset: MakeDataset, flip_byte: Callable[[str, int], None]) -> Dataset:
    """Bytes of samples 3 and 15 are flipped; the picture of 20 cannot be decoded although its checksum is right; the last shard's tar is lost once open."""
    folder = make_dataset([12]).folder
    broken = [writer.SampleToWrite(one.key, one.image[:200] if n == 8 else one.image, one.extension, one.captions) for n, one in enumerate(samples(1, 12))]
    entries = [manifest.read_manifest(folder).shards[0]]
    entries += [writer.write_shard(layout.tar_path(folder, "00001"), broken), writer.write_shard(layout.tar_path(folder, "00002"), samples(2, 5))]
    manifest.publish(folder, entries, {}, {})
    for shard, row in (("00000", 3), ("00001", 3)):
        flip_byte(layout.tar_path(folder, shard), int(index.read_index(layout.index_path(folder, shard)).offset[row]) + 600)
    opened = Dataset.open(folder)
    Path(layout.tar_path(folder, "00002")).unlink()
    return opened


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_module, "PAUSE_BEFORE_LOST_S", 0.0)


def run_world(dataset: Dataset, start: Position | None, entries: list[dict[str, Any]], steps: int, world_size: int) -> tuple[Position, list[dict[str, Any]]]:
    """Every rank a thread; the position after the steps, and the quarantine of all ranks."""
    gathered: list[Any] = [None] * world_size
    results: list[Any] = [None] * world_size
    together = threading.Barrier(world_size)

    def rank(number: int) -> None:
        one = loader(dataset, world_size, number)
        one.restore_quarantine(entries)
        position = list(islice(one.from_position(start or one.start()), steps))[-1][1]

        def of_all(own: Any) -> list[Any]:
            gathered[number] = own
            together.wait()
            return list(gathered)

        results[number] = (position, one.share_quarantine(of_all))
        one.close()

    ranks = [threading.Thread(target=rank, args=(number,)) for number in range(world_size)]
    for thread in ranks:
        thread.start()
    for thread in ranks:
        thread.join()
    assert all(result == results[0] for result in results)
    return results[0]


@pytest.mark.parametrize("worlds", [(2,), (4, 3), (8, 1), (1, 2, 4, 6)])
def test_ranks_together_count_what_one_rank_would_have_counted(damaged: Dataset, worlds: tuple[int, ...]) -> None:
    """Also where they share in between, as at every checkpoint, and where others go on."""
    alone = loader(damaged)
    for _ in islice(alone.from_position(alone.start()), 3 * len(worlds)):
        pass
    position, entries = None, []
    for world_size in worlds:
        position, entries = run_world(damaged, position, entries, 3, world_size)
    assert entries == alone.quarantine
    assert {(entry["sample"], entry["samples"]) for entry in entries} == {(3, 1), (15, 1), (20, 1), (24, 5)}
    assert sum(entry["replaced"] for entry in entries) > len(entries)


def test_a_lost_shard_is_one_entry_and_everything_else_is_delivered(damaged: Dataset) -> None:
    one = loader(damaged, num_workers=2)
    delivered = Counter(sample for batches, _ in islice(one.from_position(one.start()), 3 * one.steps_per_epoch) for sample in batches[0])
    one.close()
    assert set(delivered) <= set(range(24)) - {3, 15, 20}
    listed = {entry["sample"]: entry for entry in one.quarantine}
    assert listed[24]["samples"] == 5
    assert listed[24]["key"] == layout.tar_path(damaged.folder, "00002")
    assert "00002.tar" in listed[24]["reason"]
    assert "checksum" in listed[3]["reason"]
    assert "damaged picture" in listed[20]["reason"]
    assert num_samples(one.quarantine) == 8
    assert one.quarantine_counts == (0, 8)
    shards = by_shard(one.quarantine, damaged.name_of)
    assert [(shard.rsplit("/", 1)[-1], count) for shard, count, _ in shards] == [("00002.tar", 5), ("00001.tar", 2), ("00000.tar", 1)]


@pytest.mark.parametrize("epoch_over", ["pairs", "images"])
@pytest.mark.parametrize("lose", ["tar", "index", "size", "damaged index", "index of another tar"])
def test_whatever_is_lost_of_a_shard_the_rest_is_delivered_and_the_shard_listed_once(
    make_dataset: MakeDataset, flip_byte: Callable[[str, int], None], lose: str, epoch_over: Any
) -> None:
    folder = make_dataset([12, 5, 12]).folder
    tar_path, index_path = Path(layout.tar_path(folder, "00001")), Path(layout.index_path(folder, "00001"))
    if lose == "tar":
        tar_path.unlink()
    elif lose == "index":
        index_path.unlink()
    elif lose == "size":
        tar_path.write_bytes(tar_path.read_bytes() + bytes(512))
    elif lose == "damaged index":
        flip_byte(str(index_path), 60)
    else:
        index_path.write_bytes(Path(layout.index_path(folder, "00000")).read_bytes())
    one = loader(Dataset.open(folder), epoch_over=epoch_over)
    delivered = {sample for batches, _ in islice(one.from_position(one.start()), 4 * one.steps_per_epoch) for sample in batches[0]}
    assert delivered == {*range(12), *range(17, 29)}
    (entry,) = one.quarantine
    assert (entry["sample"], entry["samples"], entry["key"]) == (12, 5, str(tar_path))
    assert "00001" in entry["reason"]
    assert entry["replaced"] > 1


def test_a_quarantined_shard_stays_replaced_where_it_is_back(damaged: Dataset, make_dataset: MakeDataset) -> None:
    one = loader(damaged)
    steps = list(islice(one.from_position(one.start()), 2 * one.steps_per_epoch))
    half = one.steps_per_epoch - 1
    first = loader(damaged)
    list(islice(first.from_position(first.start()), half + 1))
    writer.write_shard(layout.tar_path(damaged.folder, "00002"), samples(2, 5))
    resumed = loader(Dataset.open(damaged.folder))
    resumed.restore_quarantine(first.quarantine)
    assert list(islice(resumed.from_position(steps[half][1]), len(steps) - half - 1)) == steps[half + 1 :]
    assert resumed.quarantine == one.quarantine


def test_a_bad_disk_under_the_cache_costs_no_sample(make_dataset: MakeDataset, s3_bucket: str, tmp_path: Path) -> None:
    """Where the bytes came from they are whole: the second look passes by the cache."""
    folder = make_dataset([6], f"{s3_bucket}/set").folder
    dataset = Dataset.open(folder, reader=RangeReader(cache_dir=str(tmp_path / "cache")))
    sample, where = dataset.read(2), int(index.read_index(layout.index_path(folder, "00000")).offset[2]) + 700
    pieces = [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.stat().st_size >= dataset.manifest.shards[0].bytes]
    assert pieces
    for path in pieces:
        with path.open("r+b") as file:
            file.seek(where)
            file.write(bytes([sample.image[0] ^ 0xFF]) * 8)
    fetched = dataset.reader.counters["requests"]
    assert dataset.read(2) == sample
    assert dataset.reader.counters["requests"] == fetched + 1


def test_a_dataset_that_is_gone_as_a_whole_stops_the_run_and_quarantines_nothing(make_dataset: MakeDataset) -> None:
    """A file system that is not mounted any more is no damage."""
    dataset = make_dataset([12, 12, 12])
    one = loader(dataset)
    Path(dataset.folder).rename(f"{dataset.folder}.elsewhere")
    with pytest.raises(Stopped, match=r"^[^\n]*the dataset is gone[^\n]*run the same command again[^\n]*$"):
        next(iter(one.from_position(one.start())))
    assert one.quarantine == []


def test_a_shard_that_shrank_while_in_use_is_a_lost_shard(make_dataset: MakeDataset) -> None:
    dataset = make_dataset([6, 6])
    path = Path(layout.tar_path(dataset.folder, "00001"))
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DamagedShard, match=r"00001\.tar") as raised:
        dataset.read(11)
    assert (raised.value.before, raised.value.samples) == (5, 6)


def test_captions_the_index_does_not_know_are_damage_not_a_crash(make_dataset: MakeDataset) -> None:
    """An index of another program's making, with the right sum."""
    folder = make_dataset([3]).folder
    path = layout.index_path(folder, "00000")
    index.write_index(path, replace(index.read_index(path), captions=np.array([3, 2, 1], np.uint16)))
    with pytest.raises(DamagedSample, match=r"1 captions, the index says 3"):
        Dataset.open(folder).read(0)


def share(world: list[Quarantine], before: tuple[Any, ...] = ()) -> list[Any]:
    """What `of_all` does, without processes: each rank's own entries go on to the next, and the list of all comes back."""
    if not world:
        return list(before)
    gathered: list[Any] = []
    world[0].share(lambda own: gathered.extend(share(world[1:], (*before, own))) or gathered)
    return gathered


PLACES = st.tuples(st.integers(0, 2), st.integers(0, 30))
SPANS = st.sampled_from([(0, 1), (1, 1), (2, 1), (5, 1), (4, 3), (7, 2)])


@given(met=st.lists(st.tuples(PLACES, SPANS), max_size=40), ranks=st.integers(1, 4), shared_after=st.sets(st.integers(0, 39)))
def test_sharing_is_adding_up_whenever_it_happens(met: list[tuple[tuple[int, int], tuple[int, int]]], ranks: int, shared_after: set[int]) -> None:
    alone, world = Quarantine(), [Quarantine() for _ in range(ranks)]
    for number, ((epoch, position), (first, count)) in enumerate(sorted(met)):
        damage = Damage(first, f"key {first}", f"reason {first} {count}", epoch, position, count)
        alone.record([damage])
        world[position % ranks].record([damage])
        assert num_samples(alone.entries) <= world[0].num_shared + sum(one.num_unshared for one in world)
        if number in shared_after:
            share(world)
    share(world)
    assert all(one.entries == alone.entries and one.num_shared == num_samples(alone.entries) for one in world)
    assert sum(entry["replaced"] for entry in alone.entries) == len(met)
    listed = {sample for _, (first, count) in met for sample in range(first, first + count)}
    assert num_samples(alone.entries) == len(listed)
    assert {sample for sample in range(12) if alone.of(sample)} == listed
