"""What the operator and a dashboard are told: what is done and to go, how fast, and how it ended."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ingest import display
from ingest.display import Display
from ingest.progress import ShardProgress
from ingest.status import Status, duration
from pipeline.core.errors import Stopped


def status(run_folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((run_folder / "status.json").read_text())
    return record


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The display's time; a test moves it on."""
    now = [0.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: now[0])
    return now


def test_the_status_counts_published_and_open_shards_and_the_living_workers(tmp_path: Path, clock: list[float]) -> None:
    with Display(1000, Counter(success=100), tmp_path) as shown:
        for second in (0, 10):
            clock[0] = second
            rows = Counter(success=20 * second, timeout=2 * second, http_404=second)
            open_shard = ShardProgress("00001", os.getpid(), rows, bytes=second * 1_000_000)
            shown.update(Counter(success=100), [open_shard, ShardProgress("00002", None, Counter(too_small=1))])
        running = status(tmp_path)
    assert running["state"] == "running"
    assert (running["total"], running["done"], running["to_go"]) == (1000, 331, 669)
    assert running["outcomes"] == {"success": 300, "timeout": 20, "http_404": 10, "too_small": 1}
    assert running["top_failures"] == {"timeout": 20, "http_404": 10, "too_small": 1}
    assert running["success_percent"] == pytest.approx(90.63)
    assert (running["pictures_per_s"], running["bytes_per_s"], running["workers"]) == (23, 1_000_000, 1)
    assert running["eta_s"] == pytest.approx(669 / 23)


def test_rows_out_of_an_earlier_starts_journal_are_done_but_not_fast(tmp_path: Path, clock: list[float]) -> None:
    with Display(1000, Counter(), tmp_path) as shown:
        shown.update(Counter(), [ShardProgress("00000", 1)])
        clock[0] = 10
        shown.update(Counter(), [ShardProgress("00000", 1, Counter(success=520), resumed=500)])
        assert shown.status.done == 520
        assert shown.status.pictures_per_s == 2


def test_the_line_says_all_an_operator_asks() -> None:
    line = Status("running", 1000, {"success": 972, "timeout": 12, "http_404": 9, "dns_failed": 4, "too_small": 3}, 312.4, 41_200_000, 4800, 2).line()
    assert line == "ETA 1 h 20 min, 312 pictures/s, 41.2 MB/s, 97.2 % success, timeout 12, http_404 9, dns_failed 4, other 3, 2 workers"


@pytest.mark.parametrize(("seconds", "text"), [(0, "0 s"), (59.4, "59 s"), (90, "2 min"), (3600, "1 h 0 min"), (100_000, "1 d 3 h")])
def test_durations_have_two_units_at_most(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_at_the_end_the_status_is_finished_with_every_row(tmp_path: Path) -> None:
    with Display(3, Counter(), tmp_path) as shown:
        shown.finish(Counter(success=2, timeout=1))
    assert (status(tmp_path)["state"], status(tmp_path)["to_go"], status(tmp_path)["workers"]) == ("finished", 0, 0)


def test_a_stop_is_in_the_status_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(Stopped), Display(3, Counter(success=1), tmp_path):
        raise Stopped("stopped early: received SIGTERM")
    assert status(tmp_path)["state"] == "stopped"
    assert status(tmp_path)["reason"] == "stopped early: received SIGTERM"
    assert status(tmp_path)["to_go"] == 2


def test_a_status_that_cannot_be_written_does_not_end_the_run(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with Display(1, Counter(), blocked) as shown:
        shown.finish(Counter(success=1))
    assert not list(tmp_path.glob("*/status.json"))
