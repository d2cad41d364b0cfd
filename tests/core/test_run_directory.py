"""The run directory: one command at a time, and completion markers that survive."""

import multiprocessing
import time
from pathlib import Path

import pytest

from pipeline.core.errors import UserError
from pipeline.core.run_directory import RunDirectory


def hold(path: Path) -> None:
    with RunDirectory(path).locked():
        time.sleep(60)


def test_a_second_command_in_the_same_directory_is_told_who_works_there(tmp_path: Path) -> None:
    other = multiprocessing.get_context("spawn").Process(target=hold, args=(tmp_path,))
    other.start()
    try:
        deadline = time.monotonic() + 30
        while not (tmp_path / "lock").exists() or (tmp_path / "lock").read_text() != str(other.pid):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with pytest.raises(UserError, match=f"in use by process {other.pid}"), RunDirectory(tmp_path).locked():
            pass
    finally:
        other.kill()
        other.join()
    with RunDirectory(tmp_path).locked():  # the kernel dropped the lock of the killed process
        pass


def test_a_finished_stage_is_remembered_with_its_fingerprint(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    assert directory.result("ingest") is None
    directory.finish("ingest", "abc", {"samples": 3}, seconds=1.25)
    assert directory.result("ingest") == {"stage": "ingest", "fingerprint": "abc", "seconds": 1.2, "result": {"samples": 3}}


@pytest.mark.parametrize("content", ["", '{"stage": "ingest"', "[]", "{}", "\x00\xff"])
def test_a_damaged_record_is_one_line_that_says_what_to_do(tmp_path: Path, content: str) -> None:
    directory = RunDirectory(tmp_path)
    directory.finish("ingest", "f" * 16, {"samples": 3}, 1.0)
    (tmp_path / "stages" / "ingest.json").write_text(content)
    with pytest.raises(UserError, match=r"ingest\.json: the record of a finished stage is damaged .*delete it") as error:
        directory.result("ingest")
    assert "\n" not in str(error.value)
