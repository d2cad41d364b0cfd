"""Who am I among many: the same answer whichever launcher started the process, and a batch that fits or a list of ranks that do."""

import pytest

from pipeline.core.errors import ConfigError
from training.config import TrainingConfig
from training.distributed import complete_environment
from training.engine import split_of


def test_a_lone_process_is_a_world_of_one_on_a_free_port() -> None:
    found = complete_environment({"HOME": "/root"})
    assert (found["RANK"], found["WORLD_SIZE"], found["LOCAL_SIZE"]) == ("0", "1", "1")
    assert int(found["MASTER_PORT"]) > 1023


def test_srun_variables_become_ranks() -> None:
    slurm = {
        "SLURM_STEP_ID": "0",
        "SLURM_PROCID": "3",
        "SLURM_LOCALID": "1",
        "SLURM_NTASKS": "4",
        "SLURM_NTASKS_PER_NODE": "2",
        "MASTER_ADDR": "10.0.0.1",
        "MASTER_PORT": "2000",
    }
    assert complete_environment(slurm) == {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_SIZE": "2"}


def test_a_batch_script_outside_srun_is_alone() -> None:
    assert complete_environment({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"})["WORLD_SIZE"] == "1"


def test_what_torchrun_set_is_left_alone() -> None:
    torchrun = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "x", "MASTER_PORT": "1", "SLURM_PROCID": "0"}
    assert complete_environment(torchrun) == {"LOCAL_SIZE": "2"}


@pytest.mark.parametrize(
    ("ranks", "micro_batch_size", "split"),
    [(1, None, (512, 1)), (8, None, (64, 1)), (2, 64, (64, 4)), (4, 128, (128, 1))],
)
def test_micro_batch_times_accumulation_times_ranks_is_the_global_batch(ranks: int, micro_batch_size: int | None, split: tuple[int, int]) -> None:
    assert split_of(TrainingConfig(dataset="x", micro_batch_size=micro_batch_size), ranks) == split


def test_ranks_that_do_not_divide_the_batch_are_told_which_would() -> None:
    with pytest.raises(ConfigError, match=r"512 cannot be split over 3 ranks in groups of 64; ranks that fit: \[1, 2, 4, 8\]"):
        split_of(TrainingConfig(dataset="x"), 3)


def test_a_micro_batch_that_cuts_a_group_is_refused() -> None:
    with pytest.raises(ConfigError, match="micro_batch_size 32 must divide the 512 pairs"):
        split_of(TrainingConfig(dataset="x", micro_batch_size=32), 1)
