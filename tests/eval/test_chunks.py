"""Chunks of a long computation: once computed, never again."""

from pathlib import Path

import numpy as np
import pytest

from eval.chunks import Arrays, Progress
from pipeline.core.errors import Stopped


class Squares:
    """Counts what it computes."""

    def __init__(self) -> None:
        self.computed: list[int] = []

    def __call__(self, start: int, stop: int) -> Arrays:
        self.computed += range(start, stop)
        return {"squares": np.arange(start, stop) ** 2}


def test_the_chunks_join_in_order_whether_kept_or_not(tmp_path: Path) -> None:
    for progress in (Progress(), Progress(tmp_path)):
        assert progress.in_chunks("squares", 10, 3, Squares())["squares"].tolist() == [n * n for n in range(10)]


def test_a_second_run_computes_only_what_is_missing_or_damaged(tmp_path: Path) -> None:
    Progress(tmp_path).in_chunks("squares", 10, 3, Squares())
    (tmp_path / "squares-000000003.npz").unlink()
    (tmp_path / "squares-000000006.npz").write_bytes(b"PK\x03\x04 cut")
    again = Squares()
    assert Progress(tmp_path).in_chunks("squares", 10, 3, again)["squares"].tolist() == [n * n for n in range(10)]
    assert again.computed == [3, 4, 5, 6, 7, 8]


def test_a_stop_file_stops_between_chunks_and_keeps_them(tmp_path: Path) -> None:
    squares = Squares()

    def compute(start: int, stop: int) -> Arrays:
        (tmp_path / "STOP").touch()
        return squares(start, stop)

    with pytest.raises(Stopped):
        Progress(tmp_path / "kept", tmp_path).in_chunks("squares", 10, 3, compute)
    assert squares.computed == [0, 1, 2]
    (tmp_path / "STOP").unlink()
    assert Progress(tmp_path / "kept", tmp_path).in_chunks("squares", 10, 3, squares)["squares"][9] == 81
    assert squares.computed == list(range(10))


def test_a_chunk_with_a_row_too_few_is_a_bug_that_shows() -> None:
    with pytest.raises(AssertionError, match="10 items"):
        Progress().in_chunks("squares", 10, 3, lambda start, stop: {"squares": np.zeros(min(stop, 9) - start)})
