"""Each rank says where it is, cheaply, and whatever the disk does."""

import logging
import time
from pathlib import Path

import pytest
from waiting import wait_until

from training.watch.heartbeat import Heartbeat, path_of, read_beat


def test_the_file_says_where_the_rank_is_and_since_when(tmp_path: Path) -> None:
    heartbeat = Heartbeat(tmp_path / "heartbeat", rank=3, every_s=0.05)
    first = read_beat(tmp_path / "heartbeat", 3)
    assert first is not None
    assert (first.rank, first.phase, first.step) == (3, "start", 0)
    heartbeat.beat("data", 7)
    heartbeat.beat("step", 7)
    wait_until(lambda: read_beat(tmp_path / "heartbeat", 3) == heartbeat.last)
    assert (heartbeat.last.phase, heartbeat.last.step) == ("step", 7)
    assert -1 < heartbeat.last.age_s(time.time()) < 60
    heartbeat.close()
    last = read_beat(tmp_path / "heartbeat", 3)
    assert last is not None
    assert (last.phase, last.step) == ("end", 7)
    assert [path.name for path in (tmp_path / "heartbeat").iterdir()] == ["rank-00003.json"]


def test_however_often_it_beats_the_file_is_written_once_a_period(tmp_path: Path) -> None:
    heartbeat = Heartbeat(tmp_path, rank=0, every_s=0.2)
    versions, begun, step = set(), time.monotonic(), 0
    while time.monotonic() < begun + 1.5:
        step += 1
        heartbeat.beat("step", step)
        beat = read_beat(tmp_path, 0)
        assert beat is not None, "a reader met a file that was not whole"
        versions.add(beat.step)
    periods = (time.monotonic() - begun) / 0.2
    assert 2 <= len(versions) <= periods + 2
    assert step > 10 * len(versions)
    heartbeat.close()


def test_a_disk_that_takes_nothing_is_warned_of_once_and_training_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "train").write_text("a file in place of the folder")
    with caplog.at_level(logging.WARNING):
        heartbeat = Heartbeat(tmp_path / "train" / "heartbeat", rank=0, every_s=0.01)
        for step in range(20):
            heartbeat.beat("step", step)
            time.sleep(0.02)
        assert len(caplog.records) == 1
        assert "rank-00000.json: the heartbeat cannot be written" in caplog.text
        (tmp_path / "train").unlink()  # there is room again
        heartbeat.beat("save", 20)
        wait_until(lambda: read_beat(tmp_path / "train" / "heartbeat", 0) == heartbeat.last)
        heartbeat.close()
    assert len(caplog.records) == 1


def test_what_cannot_be_read_is_none(tmp_path: Path) -> None:
    assert read_beat(tmp_path, 0) is None
    path_of(tmp_path, 0).write_text('{"rank": 0')
    assert read_beat(tmp_path, 0) is None
