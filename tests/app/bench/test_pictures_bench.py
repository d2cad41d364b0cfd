"""The benchmark of pictures gives rows whose figures are measured: of all formats together, and of each."""

from pathlib import Path

from pipeline.app.bench.pictures import compare


def test_the_rows_name_the_formats_both_sides_and_their_times(tmp_path: Path) -> None:
    rows = compare(tmp_path, rounds=2, distinct=14)
    assert {row.case: row.note.split()[0] for row in rows} == {
        "pictures": "14",
        "pictures-progressive": "3",
        "pictures-jpeg": "9",
        "pictures-png": "1",
        "pictures-webp": "1",
    }
    for row in rows:
        assert row.ours > 0
        assert row.peer is not None
        assert row.peer > 0
        assert row.peer_name == "img2dataset Resizer"
