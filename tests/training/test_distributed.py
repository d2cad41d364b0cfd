"""Who am I among many: the same answer whichever launcher started the process."""

from pathlib import Path

import pytest
import ranks

from pipeline.core.errors import AlbefError, ConfigError
from training import slurm
from training.distributed import World, complete_environment


def errors_of_a_rank(world: World, _: Path) -> list[tuple[str, str]]:
    """What it raises when both ranks fail for the same reason, and when each has its own."""

    def fail(reason: str) -> tuple[str, str]:
        def act() -> None:
            raise ConfigError(reason)

        with pytest.raises(AlbefError) as raised:
            world.together(act)
        return type(raised.value).__name__, str(raised.value)

    return [fail("the same"), fail(f"of rank {world.rank}")]


def test_an_error_that_all_ranks_meet_is_told_by_the_first_alone(tmp_path: Path) -> None:
    first, second = ranks.on_each(errors_of_a_rank, tmp_path)
    assert first == [("ConfigError", "the same"), ("ConfigError", "of rank 0")]
    assert second == [("FailedElsewhere", "the same"), ("ConfigError", "of rank 1")]


def test_a_lone_process_is_a_world_of_one_on_a_free_port() -> None:
    found = complete_environment({"HOME": "/root"})
    assert (found["RANK"], found["WORLD_SIZE"], found["LOCAL_SIZE"]) == ("0", "1", "1")
    assert int(found["MASTER_PORT"]) > 1023


SLURM = {
    "SLURM_STEP_ID": "2",
    "SLURM_JOB_ID": "4711",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "2",
    "SLURM_NTASKS": "6",
    "SLURM_STEP_NODELIST": "gpu[007-009]",
    "SLURM_STEP_TASKS_PER_NODE": "2(x3)",
}


def test_srun_variables_become_ranks() -> None:
    meeting = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "2000"}
    assert complete_environment({**SLURM, **meeting}) == {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "6", "LOCAL_SIZE": "2"}


@pytest.mark.parametrize(("counts", "expected"), [("1", [1]), ("2(x3),1", [2, 2, 2, 1]), ("4,3(x2)", [4, 3, 3])])
def test_slurms_short_form_of_counts_is_written_out(counts: str, expected: list[int]) -> None:
    assert slurm.tasks_per_node(counts) == expected


def test_a_step_that_cannot_ask_slurm_says_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"scontrol show hostnames gpu\[007-009\]: .*; set MASTER_ADDR and MASTER_PORT"):
        complete_environment(SLURM)


def test_a_lone_task_meets_nobody_and_asks_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    alone = {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_STEP_TASKS_PER_NODE": "1"}
    found = complete_environment({**SLURM, **alone})
    assert (found["RANK"], found["WORLD_SIZE"], found["MASTER_ADDR"]) == ("0", "1", "127.0.0.1")


def test_a_batch_script_outside_srun_is_alone() -> None:
    assert complete_environment({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"})["WORLD_SIZE"] == "1"


def test_what_torchrun_set_is_left_alone() -> None:
    torchrun = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "x", "MASTER_PORT": "1", "SLURM_PROCID": "0"}
    assert complete_environment(torchrun) == {"LOCAL_SIZE": "2"}
