"""The order contract: exactly once, the same on any ranks and workers, and resumed bit for bit."""

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import pytest
from delivering import digests, global_batches, loader

from pipeline.core import storage
from pipeline.core.errors import ConfigError, DataError, Stopped
from shards import index, layout, manifest, writer
from shards.dataset import Dataset
from shards.loader import Position, ShardLoader
from shards.pixels.transforms import PretrainTransform
from shards.remote.ranges import RangeReader
from shards.remote.transport import Deadlines

from .conftest import MakeDataset, samples


@pytest.mark.parametrize("num_workers", [0, 1, 2])
@pytest.mark.parametrize(("world_size", "accumulation"), [(1, 1), (1, 3), (2, 1), (2, 2), (3, 1), (4, 1), (4, 3)])
def test_global_batches_are_the_same_however_they_are_split(make_dataset: MakeDataset, world_size: int, accumulation: int, num_workers: int) -> None:
    dataset = make_dataset([9, 2, 14, 5])
    plain = global_batches(dataset.folder, 6)
    split = global_batches(dataset.folder, 6, world_size=world_size, accumulation=accumulation, num_workers=num_workers)
    assert split == plain


@pytest.mark.parametrize("epoch_over", ["pairs", "images"])
def test_every_item_comes_at_most_once_an_epoch_and_only_the_rest_of_a_batch_is_left_out(make_dataset: MakeDataset, epoch_over: str) -> None:
    dataset = make_dataset([9, 2, 14, 5])
    one = loader(dataset, epoch_over=epoch_over)
    items = one.items_per_epoch
    assert items == (dataset.manifest.num_captions if epoch_over == "pairs" else dataset.num_samples)
    epochs = global_batches(dataset.folder, 2 * one.steps_per_epoch, epoch_over=epoch_over)
    identity = slice(2, 4) if epoch_over == "pairs" else slice(2, 3)
    seen = []
    for epoch in (epochs[: one.steps_per_epoch], epochs[one.steps_per_epoch :]):
        counts = Counter(item[identity] for batch in epoch for item in batch)
        assert max(counts.values()) == 1
        assert len(counts) == one.steps_per_epoch * 12 > items - 12
        seen.append([item[identity] for batch in epoch for item in batch])
    assert seen[0] != seen[1]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resuming_at_any_step_equals_going_on_bit_for_bit(make_dataset: MakeDataset, num_workers: int) -> None:
    dataset = make_dataset([9, 2, 14, 5])
    one = loader(dataset)
    steps = list(islice(one.from_position(one.start()), 2 * one.steps_per_epoch + 2))
    for done in range(len(steps) - 1):
        position = Position(**asdict(steps[done][1]))
        resumed = loader(Dataset.open(dataset.folder), num_workers=num_workers)
        assert next(iter(resumed.from_position(position))) == steps[done + 1]
        resumed.close()


def test_a_run_saved_on_four_ranks_goes_on_with_three(make_dataset: MakeDataset) -> None:
    dataset = make_dataset([9, 2, 14, 5])
    one = loader(dataset, world_size=4, rank=2)
    position = list(islice(one.from_position(one.start()), 2))[-1][1]
    assert global_batches(dataset.folder, 5)[2:] == global_batches(dataset.folder, 3, start=asdict(position), world_size=3, accumulation=2)


def test_a_position_of_other_data_or_another_seed_is_refused(make_dataset: MakeDataset) -> None:
    dataset = make_dataset([9, 9])
    position = loader(dataset).start()
    assert len(str(asdict(position))) < 1000
    other = ShardLoader(dataset, transform=PretrainTransform(16), collate=digests, global_batch_size=12, micro_batch_size=12, seed=6)
    for stranger in (other, loader(dataset, batch=6), loader(dataset, epoch_over="images"), loader(dataset, lanes=2), loader(make_dataset([9, 8]))):
        with pytest.raises(DataError, match="resume with the same ones"):
            stranger.from_position(position)


def test_a_global_batch_that_does_not_fit_names_what_does(make_dataset: MakeDataset) -> None:
    dataset = make_dataset([9])
    with pytest.raises(ConfigError, match=r"^global_batch_size 12 is not micro_batch_size 2 x accumulation_steps 1 x 5 ranks; 6 ranks fit these$"):
        ShardLoader(dataset, transform=PretrainTransform(16), collate=digests, global_batch_size=12, micro_batch_size=2, world_size=5)
    with pytest.raises(ConfigError, match=r"ranks that divide it: 1, 2, 3, 4, 6, 12$"):
        ShardLoader(dataset, transform=PretrainTransform(16), collate=digests, global_batch_size=12, micro_batch_size=5, world_size=2)
    with pytest.raises(DataError, match="do not fill a global batch of 100"):
        loader(dataset, batch=100).from_position(loader(dataset, batch=100).start())


def damaged_dataset(make_dataset: MakeDataset, flip_byte: Callable[[str, int], None]) -> Dataset:
    """Sample 3 has a flipped byte; sample 20's picture cannot be decoded although its checksum is right."""
    folder = make_dataset([12]).folder
    undecodable = [writer.SampleToWrite(s.key, s.image[:200] if n == 8 else s.image, s.extension, s.captions) for n, s in enumerate(samples(1, 12))]
    entries = [manifest.read_manifest(folder).shards[0], writer.write_shard(layout.tar_path(folder, "00001"), undecodable)]
    manifest.publish(folder, entries, {}, {})
    flip_byte(layout.tar_path(folder, "00000"), int(index.read_index(layout.index_path(folder, "00000")).offset[3]) + 600)
    return Dataset.open(folder)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_damaged_items_are_replaced_alike_everywhere_and_listed(make_dataset: MakeDataset, flip_byte: Callable[[str, int], None], num_workers: int) -> None:
    dataset = damaged_dataset(make_dataset, flip_byte)
    one = loader(dataset, num_workers=num_workers)
    steps = list(islice(one.from_position(one.start()), one.steps_per_epoch))
    one.close()
    assert {item[2] for batches, _ in steps for item in batches[0]}.isdisjoint({3, 20})
    assert all(len(batches[0]) == 12 for batches, _ in steps)
    listed = {entry["sample"]: entry for entry in one.quarantine}
    assert set(listed) == {3, 20}
    assert listed[3]["key"] == "000000003"
    assert "checksum" in listed[3]["reason"]
    assert "damaged picture" in listed[20]["reason"]
    assert global_batches(dataset.folder, len(steps), world_size=3, accumulation=2) == [batches[0] for batches, _ in steps]


def test_the_quarantine_holds_what_delivered_steps_met_and_decides_again_on_resume(make_dataset: MakeDataset, flip_byte: Callable[[str, int], None]) -> None:
    dataset = damaged_dataset(make_dataset, flip_byte)
    path = Path(layout.tar_path(dataset.folder, "00000"))
    one = loader(dataset, num_workers=2)
    states = [(batches, position, one.quarantine) for batches, position in islice(one.from_position(one.start()), 2 * one.steps_per_epoch)]
    one.close()
    assert states[-1][2] == one.quarantine
    half = next(n for n, (_, _, quarantine) in enumerate(states) if any(entry["sample"] == 3 for entry in quarantine))
    flip_byte(str(path), int(index.read_index(layout.index_path(dataset.folder, "00000")).offset[3]) + 600)  # repaired meanwhile
    resumed = loader(Dataset.open(dataset.folder), num_workers=1)
    resumed.restore_quarantine(states[half][2])
    rest = list(islice(resumed.from_position(states[half][1]), len(states) - half - 1))
    resumed.close()
    assert rest == [(batches, position) for batches, position, _ in states[half + 1 :]]
    assert resumed.quarantine == states[-1][2]


def test_storage_that_fails_stops_the_run_and_quarantines_nothing(make_dataset: MakeDataset, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_dataset([12, 12], f"{s3_bucket}/set").folder
    one = loader(Dataset.open(folder, reader=RangeReader(deadlines=Deadlines(patience_s=0.5))))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # nobody listens there
    storage.filesystem("s3://x")[0].clear_instance_cache()
    with pytest.raises(Stopped, match="run the same command again"):
        next(iter(one.from_position(one.start())))
    assert one.quarantine == []


def test_a_cache_too_small_for_what_is_in_use_is_refused_before_training(make_dataset: MakeDataset, s3_bucket: str) -> None:
    folder = make_dataset([12, 12], f"{s3_bucket}/set").folder
    needed = sum(shard.bytes for shard in Dataset.open(folder).manifest.shards)
    loader(Dataset.open(folder, reader=RangeReader(needed))).close()
    with pytest.raises(ConfigError, match=r"^cache_gib is .*, but a node that serves 1 of 1 lanes of 64 shards a block needs .*; set cache_gib to 0\.1$"):
        loader(Dataset.open(folder, reader=RangeReader(needed - 1)))
    loader(make_dataset([12, 12])).close()  # local shards are read where they are


def test_a_dataset_that_is_all_damage_ends_in_one_line(make_dataset: MakeDataset) -> None:
    dataset = make_dataset([12])
    path = Path(layout.tar_path(dataset.folder, "00000"))
    path.write_bytes(bytes(path.stat().st_size))
    one = loader(Dataset.open(dataset.folder))
    with pytest.raises(DataError, match="100 damaged samples in a row"):
        next(iter(one.from_position(one.start())))


def test_pictures_draws_follow_the_item_and_its_epoch(make_dataset: MakeDataset) -> None:
    dataset = make_dataset([12])
    one = loader(dataset, batch=22)
    (first,), (second,) = (batches for batches, _ in islice(one.from_position(one.start()), 2))
    pictures = [{item[2:4]: item[5] for item in batch} for batch in (first, second)]
    shared = set(pictures[0]) & set(pictures[1])
    assert len(shared) >= 20
    assert sum(pictures[0][pair] != pictures[1][pair] for pair in shared) >= 18
