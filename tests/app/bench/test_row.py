"""A benchmark's row: medians, and a ratio that says how much better ours is."""

import json
import math
from pathlib import Path

from pipeline.app.bench.row import compared, median_interval, write_rows


def test_the_ratio_is_above_one_when_ours_is_better_whichever_way_the_unit_points() -> None:
    speed = compared("a", "pictures/s", [20, 30, 10], [10, 10, 10], "peer", "note")
    assert (speed.ours, speed.peer, speed.ratio) == (20, 10, 2)
    assert speed.note == "note; ratio of each round 2.00, 3.00, 1.00"
    assert compared("b", "s", [1.0], [4.0], "peer", "", more_is_better=False).ratio == 4


def test_the_file_has_command_commit_and_machine(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    write_rows(str(path), "ingest", "albef bench ingest", [compared("a", "s", [1.0], [2.0], "peer", "note")])
    record = json.loads(path.read_text())
    assert list(record) == ["name", "command", "commit", "machine", "rows"]
    assert list(record["rows"][0]) == ["case", "unit", "ours", "peer", "peer_name", "ratio", "note"]


def test_the_median_lies_between_the_second_lowest_and_the_second_highest_of_nine() -> None:
    assert median_interval([5, 1, 9, 2, 8, 3, 7, 4, 6]) == (2, 8)
    outside = sum(math.comb(9, below) for below in range(10) if not 2 <= below <= 7) / 2**9  # so many of nine values below the median
    assert 1 - outside >= 0.95


def test_of_a_few_values_the_interval_of_the_median_is_all() -> None:
    assert median_interval([3, 1, 2]) == (1, 3)
