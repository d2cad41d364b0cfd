"""The benchmark of pictures gives a row whose figures are measured."""

from pipeline.app.bench.pictures import compare, corpus


def test_the_row_names_both_sides_and_their_times() -> None:
    row = compare(pictures=4, rounds=2)
    assert row.ours > 0
    assert row.peer > 0
    assert row.peer_name == "img2dataset Resizer"
    assert row.ratio > 0


def test_the_same_seed_gives_the_same_pictures() -> None:
    assert corpus(2) == corpus(2)
    assert corpus(1)[0][:2] == b"\xff\xd8"
