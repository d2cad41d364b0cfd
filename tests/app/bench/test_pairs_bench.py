"""The benchmark's lists are the same each time, hold what they say, and both ways through them find it."""

import json
from pathlib import Path

import pytest

from ingest.urls import parse_and_normalise
from pipeline.app.bench import pairs

ROWS = 2800


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> pairs.Lists:
    return pairs.generate(tmp_path_factory.mktemp("lists"), ROWS)


def test_the_files_have_the_shapes_of_their_owners_and_the_repetitions_they_tell(lists: pairs.Lists) -> None:
    cc12m = [line.split("\t") for line in lists.cc12m.read_text().splitlines()]
    cc3m = [line.split("\t") for line in lists.cc3m.read_text().splitlines()]
    sbu = json.loads(lists.sbu.read_bytes())
    assert (len(cc12m), len(cc3m), len(sbu["image_urls"]), lists.rows) == (2000, 600, 200, ROWS)
    assert {len(row) for row in cc12m + cc3m} == {2}
    urls = [row[0] for row in cc12m] + [row[1] for row in cc3m] + sbu["image_urls"]
    captions = [row[1] for row in cc12m] + [row[0] for row in cc3m] + sbu["captions"]
    assert 80 < sum(map(len, urls)) / ROWS < 120
    assert 60 < sum(map(len, captions)) / ROWS < 120
    pictures = {parse_and_normalise(url) for url in urls}
    assert None not in pictures
    assert ROWS - len(pictures) == lists.repeated
    assert 0.03 < lists.repeated / ROWS < 0.07
    assert len(pictures) < len(set(urls)), "some rows repeat a picture in another spelling"


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(lists: pairs.Lists, tmp_path: Path) -> None:
    assert pairs.generate(tmp_path / "again", ROWS).cc12m.read_bytes() == lists.cc12m.read_bytes()
    assert pairs.generate(tmp_path / "other", ROWS, seed=1).cc12m.read_bytes() != lists.cc12m.read_bytes()


def test_the_table_merges_every_repetition_and_pandas_those_of_one_spelling(lists: pairs.Lists, tmp_path: Path) -> None:
    counts, usage = pairs.pair_table_of(lists, tmp_path / "work")
    assert (counts.rows, counts.merged, counts.rejected) == (ROWS, lists.repeated, {})
    assert list(counts.sources) == ["cc12m", "cc3m", "sbu"]
    assert usage.wall_s > 0
    assert usage.cpu_s > 0
    assert usage.peak_rss_bytes > 50e6
    kept, _ = pairs.pandas_of(lists, tmp_path / "work")
    assert counts.pictures < kept < ROWS
    assert list(tmp_path.iterdir()) == []


def test_the_benchmark_sets_both_ways_side_by_side_and_leaves_nothing(tmp_path: Path) -> None:
    speed, memory = pairs.compare(tmp_path / "work", 1400, rounds=1)
    assert (speed.case, speed.unit, speed.peer_name, memory.unit) == ("pairs-14m", "rows/CPU-s", "pandas", "GB")
    assert speed.note.startswith("1400 rows")
    assert min(speed.ours, speed.peer, memory.ours, memory.peer) > 0
    assert list(tmp_path.iterdir()) == []
