"""What the ranks of a run agree on before its first step: one dataset, and one error where there is one."""

from pathlib import Path

import pytest
import ranks
import tiny_run

from pipeline.core.errors import AlbefError
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
