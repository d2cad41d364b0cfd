"""What the ranks of a run agree on before its first step: one dataset, and one error where there is one."""

from pathlib import Path

import pytest
import ranks
import tiny_run

from pipeline.core.errors import AlbefError
from shards import layout
from shards.manifest import publish, read_manifest
from training.config import TrainingConfig
from training.data import open_dataset
from training.distributed import World


def error_of(world: World, folder: Path) -> tuple[str, int, str]:
    config = TrainingConfig(dataset=str(folder / "data"), quarantine_budget=0.1)
    with pytest.raises(AlbefError) as raised:
        open_dataset(config, None, world)
    return type(raised.value).__name__, raised.value.exit_code, str(raised.value)


def test_what_the_first_rank_finds_lost_ends_every_rank_with_its_exit_code(tmp_path: Path) -> None:
    tiny_run.write_dataset(tmp_path / "data")
    (tmp_path / "data" / "00001.tar").unlink()
    first, second = ranks.on_each(error_of, tmp_path)
    assert first[:2] == ("BelowFloor", 3)
    assert "32 of 96 samples" in first[2]
    assert second == ("FailedElsewhere", 3, first[2])


def error_without_the_folder_on_the_second(world: World, folder: Path) -> tuple[str, int, str]:
    return error_of(world, folder if world.rank == 0 else folder / "not-mounted")


def test_a_folder_that_one_node_alone_does_not_see_ends_every_rank(tmp_path: Path) -> None:
    tiny_run.write_dataset(tmp_path / "data")
    first, second = ranks.on_each(error_without_the_folder_on_the_second, tmp_path)
    assert second[:2] == ("DataError", 2)
    assert "not-mounted" in second[2]
    assert first == ("FailedElsewhere", 2, second[2])


def opened(world: World, folder: Path) -> tuple[int | dict[str, int], str]:
    dataset = open_dataset(TrainingConfig(dataset=str(folder / f"rank-{world.rank}" / "data")), None, world)
    return dataset.pinned, dataset.fingerprint


def test_a_rank_that_would_find_a_newer_manifest_takes_the_first_rank_s(tmp_path: Path) -> None:
    """As when somebody publishes between the starts of two ranks: all of both manifests is there, and the newest is another."""
    for rank in (0, 1):
        folder = tmp_path / f"rank-{rank}" / "data"
        tiny_run.write_dataset(folder)
        publish(str(folder), read_manifest(str(folder)).shards[:2], outcomes={}, config={})
        assert read_manifest(str(folder)).number == 2
    Path(layout.newest_path(str(tmp_path / "rank-0" / "data"))).write_text("1\n")
    first, second = ranks.on_each(opened, tmp_path)
    assert first[0] == 1
    assert second == first
