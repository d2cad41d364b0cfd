"""Saving while the training goes on: what is kept, what is cleaned, and that nothing that fails harms what is there."""

import json
import logging
import os
import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
import torch.distributed as dist
from saving import ALONE, is_of, newest_is, save, steps_in
from small_disk import small_disk
from torch.multiprocessing import spawn
from waiting import wait_until

from pipeline.core.errors import FailedElsewhere, Stopped
from training import checkpoint
from training.checkpoint import Saver
from training.distributed import World

MIB = 1 << 20


def saver_in(folder: Path | str, patience_s: float = 0.0, keep_last: int = 2, keep_every_steps: int | None = None, world: World = ALONE) -> Saver:
    return Saver(str(folder), world, keep_last, keep_every_steps, patience_s)


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_what_was_saved_is_read_back_with_its_vocabulary_and_its_figures(tmp_path: Path) -> None:
    saver = saver_in(tmp_path)
    assert saver.figures() == {}
    save(saver, 7)
    saver.wait()
    assert newest_is(tmp_path, 7)
    assert files_in(tmp_path / "step-0000007") == ["manifest.json", "optimizer.safetensors", "queue.safetensors", "student.safetensors", "vocab.txt"]
    assert checkpoint.read(str(tmp_path)).tokenizer().vocab_size == 6
    assert saver.figures()["checkpoint/bytes"] == sum((tmp_path / "step-0000007" / file).stat().st_size for file in files_in(tmp_path / "step-0000007")[1:])
    assert saver.figures()["checkpoint/write_s"] > 0


def test_a_save_awaits_the_one_before(tmp_path: Path) -> None:
    saver = saver_in(tmp_path)
    for step in (1, 2, 3):
        save(saver, step, elements=MIB)
        assert step == 1 or newest_is(tmp_path, step - 1) or newest_is(tmp_path, step)
    saver.wait()
    assert steps_in(tmp_path) == [2, 3]


def test_the_newest_and_those_at_multiples_are_kept(tmp_path: Path) -> None:
    saver = saver_in(tmp_path, keep_last=2, keep_every_steps=4)
    for step in range(2, 15, 2):
        save(saver, step)
    saver.wait()
    assert steps_in(tmp_path) == [4, 8, 12, 14]


def test_what_dead_runs_left_goes_at_the_first_save_and_what_is_the_users_stays(tmp_path: Path) -> None:
    checkpoint_of(tmp_path, 1)
    remains = ("old-00001-of-00002.safetensors", ".student.safetensors.ab.tmp", "again/student.safetensors")
    for left in (".latest.0123.tmp", *(f"step-0000001/{file}" for file in remains), "step-0000002/student.safetensors", "step-0000003/.x.cd.tmp"):
        (tmp_path / left).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / left).write_bytes(b"half")
    for own in ("notes.txt", "step-0000001/notes.txt", "best/student.safetensors"):
        (tmp_path / own).parent.mkdir(exist_ok=True)
        (tmp_path / own).write_bytes(b"mine")
    whole = files_in(tmp_path / "step-0000001")
    checkpoint_of(tmp_path, 3)
    assert steps_in(tmp_path) == [1, 3]
    assert set(whole) - set(files_in(tmp_path / "step-0000001")) == set(remains)
    assert {"notes.txt", "best/student.safetensors", "latest"} == {file for file in files_in(tmp_path) if not file.startswith("step-")}


def checkpoint_of(folder: Path, step: int) -> None:
    saver = saver_in(folder)
    save(saver, step)
    saver.wait()


def test_a_step_that_was_saved_already_is_replaced_at_once_and_as_often_as_wanted(tmp_path: Path) -> None:
    for expected in ("student.safetensors", "again/student.safetensors", "student.safetensors"):
        checkpoint_of(tmp_path, 5)
        assert newest_is(tmp_path, 5)
        assert [file for file in files_in(tmp_path / "step-0000005") if "student" in file] == [expected]


def test_after_a_roll_back_the_steps_that_were_left_are_gone(tmp_path: Path) -> None:
    for step in (5, 10, 7):
        checkpoint_of(tmp_path, step)
    assert newest_is(tmp_path, 7)
    assert steps_in(tmp_path) == [5, 7]


def test_a_rank_of_a_larger_world_leaves_no_file_that_a_smaller_one_would_read(tmp_path: Path) -> None:
    checkpoint_of(tmp_path, 4)
    folder = tmp_path / "step-0000004"
    (folder / "manifest.json").unlink()  # as after a kill before it was written
    (folder / "student.safetensors").rename(folder / "student-00002-of-00002.safetensors")
    checkpoint_of(tmp_path, 4)
    assert newest_is(tmp_path, 4)
    assert "student-00002-of-00002.safetensors" not in files_in(folder)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path, mib=8) as folder:
        yield folder


def test_a_full_disk_is_waited_for_with_one_warning_before_and_one_after(disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    saver = saver_in(disk, patience_s=120.0)
    save(saver, 1)
    saver.wait()
    (disk / "full").write_bytes(b"x" * (7 * MIB))
    save(saver, 2, elements=MIB // 2)  # two tensors of 2 MiB
    wait_until(lambda: "No space left on device; trying again" in caplog.text)
    assert newest_is(disk, 1)
    saver.check()
    (disk / "full").unlink()
    saver.wait()
    assert newest_is(disk, 2)
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert "works again" in caplog.messages[1]


def test_latest_does_not_name_a_checkpoint_before_what_must_come_first(tmp_path: Path) -> None:
    """A line of the run's record, say, that the disk has not taken: the run would go on from the checkpoint, and the line be lost."""
    ready = False

    def come_first() -> None:
        assert not newest_is(tmp_path, 2)
        if not ready:
            raise OSError("No space left on device")

    saver = saver_in(tmp_path, patience_s=60.0)
    save(saver, 1)
    saver.save(2, {"student": {"weight": torch.ones(3)}}, {}, {"state": {"step": 2}, "model": {}, "training": {}}, before_publishing=come_first)
    time.sleep(0.5)
    assert newest_is(tmp_path, 1)
    ready = True
    saver.wait()
    assert (tmp_path / "latest").read_text().strip() == "step-0000002"


def test_a_disk_that_stays_full_ends_the_run_and_harms_nothing(disk: Path) -> None:
    saver = saver_in(disk, patience_s=1.0)
    save(saver, 1)
    saver.wait()
    (disk / "full").write_bytes(b"x" * (7 * MIB))
    for step in (2, 1):  # a new one, and one that would replace what is there
        if step == 1:
            saver = saver_in(disk, patience_s=0.0)
        save(saver, step, elements=MIB // 2)
        with pytest.raises(
            Stopped, match=rf"the checkpoint of step {step} could not be written to .* No space left on device.* the same command goes on"
        ) as raised:
            saver.wait()
        assert saver.failed
        assert "\n" not in str(raised.value)
        with pytest.raises(Stopped):
            saver.check()
        with pytest.raises(Stopped):
            save(saver, 3)
        assert newest_is(disk, 1)
        assert not [file for file in files_in(disk) if file.endswith(".tmp")]


def on_two_ranks(world: World, folder: Path) -> dict[str, Any]:
    """Saves of two ranks that go well, and one that fails on rank 1 alone."""
    logging.basicConfig(filename=folder / f"log-{world.rank}")
    saver = saver_in(folder / "checkpoints", world=world)
    save(saver, 1)
    for _ in range(200):  # the training goes on, with collective calls of its own
        dist.all_reduce(torch.ones(10))
    saver.wait()
    world.barrier()
    found = {"whole": newest_is(folder / "checkpoints", 1, ranks=2), "shared": checkpoint.newest(str(folder / "checkpoints"), world) is not None}
    with_limit = saver_in(folder / "checkpoints", patience_s=60.0, world=world)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    if world.rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
    save(with_limit, 2)
    if world.rank == 1:
        wait_until(lambda: "File too large; trying again" in (folder / "log-1").read_text())
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    with_limit.wait()
    world.barrier()
    found["patient"] = newest_is(folder / "checkpoints", 2, ranks=2)
    impatient = saver_in(folder / "checkpoints", world=world)
    if world.rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
    save(impatient, 3)
    try:
        impatient.wait()
    except (Stopped, FailedElsewhere) as error:
        found |= {"error": type(error).__name__, "exit": error.exit_code, "text": str(error)}
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    return found


def test_two_ranks_write_their_own_tensors_and_the_failure_of_one_is_that_of_both(tmp_path: Path) -> None:
    first, second = ranks.on_each(on_two_ranks, tmp_path)
    for found in (first, second):
        assert (found["whole"], found["shared"], found["patient"], found["exit"]) == (True, True, True, 4)
        assert "File too large" in found["text"]
    assert (first["error"], second["error"]) == ("FailedElsewhere", "Stopped")
    folder = tmp_path / "checkpoints"
    assert newest_is(folder, 2, ranks=2)
    files = checkpoint.read(str(folder)).manifest["files"]
    assert [file for file in files if file.startswith("student")] == ["student-00001-of-00002.safetensors", "student-00002-of-00002.safetensors"]
    assert files["student-00002-of-00002.safetensors"]["tensors"] == ["weight.1"]
    slices = checkpoint.read(str(folder)).slices("student")
    assert [slices.read(f"weight.{rank}", 5, 2).tolist() for rank in (0, 1)] == [[2.0, 2.0], [pytest.approx(2.1)] * 2]
    assert "queue.safetensors" in files


def when_a_rank_dies(rank: int, folder: Path) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder}/ranks", rank=rank, world_size=2)
    saver = saver_in(folder / "checkpoints", world=World(rank, 2, torch.device("cpu")))
    save(saver, 1)
    saver.wait()
    dist.barrier()
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    save(saver, 2)
    with pytest.raises(Stopped) as raised:
        saver.wait()
    (folder / "told").write_text(str(raised.value))


@pytest.mark.slow
def test_a_rank_that_died_ends_the_save_of_the_others_and_harms_nothing(tmp_path: Path) -> None:
    spawn(when_a_rank_dies, (tmp_path,), nprocs=2, join=False)
    wait_until((tmp_path / "told").exists)
    assert "the checkpoint of step 2 could not be written" in (tmp_path / "told").read_text()
    assert newest_is(tmp_path / "checkpoints", 1, ranks=2)


def test_a_checkpoint_that_was_written_before_files_were_shared_is_read(tmp_path: Path) -> None:
    checkpoint_of(tmp_path, 3)
    path = tmp_path / "step-0000003" / "manifest.json"
    manifest = checkpoint.read(str(tmp_path)).manifest
    path.write_text(json.dumps(manifest | {"files": {file: {"bytes": about["bytes"], "sha256": about["sha256"]} for file, about in manifest["files"].items()}}))
    assert is_of(checkpoint.read(str(tmp_path)), 3)
