"""The record of a run: no step of it is lost to a full disk, and steps that are taken again replace those of before."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_disk import fill, small_disk
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training.metrics import Metrics

STEPS = range(1, 400)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", mib=2) as folder:
        yield folder


def metrics(folder: Path, resume_step: int = 0) -> Metrics:
    return Metrics(folder, resume_step, total_steps=STEPS.stop - 1, log_every_steps=1)


def lines(folder: Path) -> list[tuple[int, float]]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(record["step"], record["loss/itc"]) for record in records]


def board(folder: Path) -> list[tuple[int, float]]:
    """As TensorBoard reads it."""
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars("loss/itc")]


def test_what_a_full_disk_does_not_take_follows_when_there_is_room(disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    record = metrics(disk)
    with caplog.at_level(logging.WARNING):
        for step in STEPS:
            if step == 100:
                fill(disk / "of-another-user")
            if step == 300:
                assert len(lines_so_far(disk)) < 299
                (disk / "of-another-user").unlink()
            record.record(step, {"loss/itc": float(step)})
    record.close()
    assert lines(disk) == board(disk) == [(step, float(step)) for step in STEPS]
    refused = {name for line in warnings(caplog) for name in ("events", "metrics") if f"/{name}." in line and "No space left on device" in line}
    assert refused == {"events", "metrics"}
    assert len(warnings(caplog)) < 10, "and not one a line"


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_nothing_counts_as_settled_while_a_line_waits_for_room(disk: Path) -> None:
    record = metrics(disk)
    record.settle()
    fill(disk / "of-another-user")
    for step in STEPS:
        record.record(step, {"loss/itc": float(step)})
    with pytest.raises(OSError, match="No space left"):
        record.settle()
    (disk / "of-another-user").unlink()
    record.settle()
    assert len(lines(disk)) == len(STEPS)
    record.close()


def lines_so_far(folder: Path) -> list[str]:
    return (folder / "metrics.jsonl").read_text().splitlines()


def test_steps_that_are_taken_again_replace_those_of_before_and_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = metrics(tmp_path)
    for step in range(1, 11):
        first.record(step, {"loss/itc": 1.0})
    first.close()
    with caplog.at_level(logging.INFO):
        again = metrics(tmp_path, resume_step=6)
    assert "4 steps after step 6 are taken again: no checkpoint has them" in caplog.messages
    for step in range(7, 13):
        again.record(step, {"loss/itc": 2.0})
    again.close()
    assert lines(tmp_path) == board(tmp_path) == [(step, 1.0 if step <= 6 else 2.0) for step in range(1, 13)]


def test_steps_that_have_no_line_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = metrics(tmp_path)
    for step in range(1, 5):
        first.record(step, {"loss/itc": 1.0})
    first.close()
    metrics(tmp_path, resume_step=4).close()
    assert not warnings(caplog)
    metrics(tmp_path, resume_step=9).close()
    assert "5 of the 9 steps taken so far have no line" in caplog.text
