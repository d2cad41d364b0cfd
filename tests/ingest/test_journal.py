"""A journal gives back every row that was written whole, whatever happened to its end, on disk and in an object store."""

from pathlib import Path

import pytest

from ingest.journal import ROWS_PER_OBJECT, open_journal
from pipeline.core import storage

ROWS = {3: ({"outcome": "success"}, b"picture three"), 1: ({"outcome": "http_404"}, b""), 7: ({"outcome": "success"}, bytes(range(256)))}


def write(folder: str, generation: int = 1) -> None:
    with open_journal(folder, generation) as journal:
        for row, (facts, picture) in ROWS.items():
            journal.append(row, facts, picture)
        journal.save()


def written(folder: Path) -> Path:
    """The one file of the journal's first holder."""
    write(str(folder))
    [path] = folder.glob("000001-*.journal")
    return path


def held(folder: str, generation: int = 9) -> dict[int, tuple[dict[str, str], bytes]]:
    with open_journal(folder, generation) as journal:
        return {row: (facts, journal.picture(row)) for row, facts in journal.facts.items()}


def test_rows_come_back(tmp_path: Path) -> None:
    write(str(tmp_path))
    assert held(str(tmp_path)) == ROWS


def test_rows_come_back_from_an_object_store_in_objects_of_64(s3_bucket: str) -> None:
    folder = f"{s3_bucket}/spool/journals/00000"
    with open_journal(folder, 1) as journal:
        for row in range(ROWS_PER_OBJECT + 9):
            journal.append(row, {"outcome": "success"}, bytes([row]) * row)
            if journal.unsaved_rows == ROWS_PER_OBJECT:
                journal.save()
    assert len(storage.list_files(folder)) == 1
    assert sorted(held(folder)) == list(range(ROWS_PER_OBJECT)), "what was not saved is lost with its worker"
    with open_journal(folder, 2) as journal:
        journal.append(99, {"outcome": "success"}, b"new")
        journal.save()
        journal.save()
        assert journal.picture(5) == bytes([5]) * 5
    assert len(storage.list_files(folder)) == 2, "nothing new, nothing written"
    assert held(folder)[99] == ({"outcome": "success"}, b"new")
    with open_journal(folder, 3) as journal:
        journal.discard()
    assert storage.list_files(folder) == []


def test_a_journal_cut_anywhere_keeps_the_whole_rows_before_the_cut_and_goes_on(tmp_path: Path) -> None:
    path = written(tmp_path)
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        for later in tmp_path.glob("00000[29]-*"):
            later.unlink()
        path.write_bytes(whole[:length])
        kept = held(str(tmp_path))
        assert list(kept.items()) == list(ROWS.items())[: len(kept)]
        with open_journal(str(tmp_path), 2) as journal:
            journal.append(9, {"outcome": "success"}, b"nine")
        assert held(str(tmp_path)) == kept | {9: ({"outcome": "success"}, b"nine")}


@pytest.mark.parametrize("position", [0, 20, 60])
def test_a_damaged_row_ends_the_journal(tmp_path: Path, position: int) -> None:
    path = written(tmp_path)
    whole = bytearray(path.read_bytes())
    whole[position] ^= 1
    path.write_bytes(whole)
    assert len(held(str(tmp_path))) < len(ROWS)


def test_an_orphan_that_goes_on_writing_disturbs_nobody(tmp_path: Path) -> None:
    with open_journal(str(tmp_path), 1) as orphan, open_journal(str(tmp_path), 2) as heir:
        orphan.append(1, {"outcome": "success"}, b"orphan's")
        heir.append(1, {"outcome": "success"}, b"heir's")
        orphan.append(2, {"outcome": "success"}, b"two")
        assert heir.picture(1) == b"heir's"
    assert held(str(tmp_path)) == {1: ({"outcome": "success"}, b"heir's"), 2: ({"outcome": "success"}, b"two")}


def test_a_discarded_journal_is_gone(tmp_path: Path) -> None:
    with open_journal(str(tmp_path / "deep"), 1) as journal:
        journal.discard()
        journal.discard()
    assert not (tmp_path / "deep").exists()
