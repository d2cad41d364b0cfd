"""A journal gives back every row that was written whole, whatever happened to its end."""

from pathlib import Path

import pytest

from ingest.journal import Journal

ROWS = {3: ({"outcome": "success"}, b"picture three"), 1: ({"outcome": "http_404"}, b""), 7: ({"outcome": "success"}, bytes(range(256)))}


def written(path: Path) -> bytes:
    with Journal(path) as journal:
        for row, (facts, picture) in ROWS.items():
            journal.append(row, facts, picture)
    return path.read_bytes()


def held(path: Path) -> dict[int, tuple[dict[str, str], bytes]]:
    with Journal(path) as journal:
        return {row: (facts, journal.picture(row)) for row, facts in journal.facts.items()}


def test_rows_come_back(tmp_path: Path) -> None:
    written(tmp_path / "a.journal")
    assert held(tmp_path / "a.journal") == ROWS


def test_a_journal_cut_anywhere_keeps_the_whole_rows_before_the_cut_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    whole = written(path)
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        kept = held(path)
        assert list(kept.items()) == list(ROWS.items())[: len(kept)]
        with Journal(path) as journal:
            journal.append(9, {"outcome": "success"}, b"nine")
        assert held(path) == kept | {9: ({"outcome": "success"}, b"nine")}


@pytest.mark.parametrize("position", [0, 20, 60])
def test_a_damaged_row_ends_the_journal(tmp_path: Path, position: int) -> None:
    path = tmp_path / "a.journal"
    whole = bytearray(written(path))
    whole[position] ^= 1
    path.write_bytes(whole)
    assert len(held(path)) < len(ROWS)


def test_a_discarded_journal_is_gone(tmp_path: Path) -> None:
    with Journal(tmp_path / "deep" / "a.journal") as journal:
        journal.discard()
        journal.discard()
    assert not (tmp_path / "deep" / "a.journal").exists()
