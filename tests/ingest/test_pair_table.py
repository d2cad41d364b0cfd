"""A picture is one row with all its captions, and no row of a list is lost."""

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest import captions, filters, merging, pair_table, parts
from ingest.config import CaptionConfig, FilterConfig
from ingest.pair import Member, Pair, RejectedRow, Row, row_of
from ingest.pair_table import COLUMNS, build, member_of
from ingest.row_counts import RowCounts
from ingest.urls import parse_and_normalise, picture_uid
from pipeline.core import storage
from pipeline.core.errors import AlbefError, DataError, Stopped

Rows = list[dict[str, Any]]
PLAIN = FilterConfig()


@dataclass
class Listed:
    """A list in memory."""

    label: str
    given: list[Row] = field(default_factory=list)

    def rows(self) -> Iterator[Row]:
        return iter(self.given)


def pairs(label: str, *rows: tuple[str, str | list[str]]) -> Listed:
    return Listed(label, [row_of(number, url, text) for number, (url, text) in enumerate(rows, start=1)])


def built(folder: Path, *sources: Listed, asked: FilterConfig = PLAIN, samples_per_shard: int = 100) -> tuple[RowCounts, Rows, Rows]:
    table, rejected, scratch = folder / "table", folder / "rejected.parquet", folder / "scratch"
    counts = build(sources, asked, samples_per_shard, str(table), str(rejected), scratch)
    assert not scratch.exists()
    rows = [row for path in sorted(table.iterdir()) for row in pq.read_table(path).to_pylist()]
    return counts, rows, pq.read_table(rejected).to_pylist()


def plainly(sources: Sequence[Listed], asked: FilterConfig) -> tuple[Rows, Rows, Counter[tuple[str, str]]]:
    """What the table, the rejected rows and the overlap must be, in the plainest way."""
    rejected: Rows = []
    accepted: list[tuple[str, int, Pair, list[str]]] = []
    for source in sources:
        for number, row in enumerate(source.given, start=1):
            number = row.row or number
            if isinstance(row, RejectedRow):
                rejected.append({"source": source.label, "row": number, "reason": row.reason})
            elif reason := filters.of_columns(filters.present(row.extra), asked.columns):
                rejected.append({"source": source.label, "row": number, "reason": reason})
            else:
                texts = [captions.normalise(text) for text in row.captions]
                reasons = [filters.of_caption(text, asked.captions) for text in texts]
                if kept := list(dict.fromkeys(text for text, reason in zip(texts, reasons, strict=True) if reason is None)):
                    accepted.append((source.label, number, row, kept))
                else:
                    rejected.append({"source": source.label, "row": number, "reason": reasons[0]})
    repeats = Counter(text for *_, texts in accepted for text in texts)
    pictures: dict[str, dict[str, Any]] = {}
    overlap: Counter[tuple[str, str]] = Counter()
    for label, number, pair, texts in accepted:
        kept = [text for text in texts if asked.captions.max_repeats is None or repeats[text] <= asked.captions.max_repeats]
        if not kept:
            rejected.append({"source": label, "row": number, "reason": "repeated_caption"})
            continue
        url = parse_and_normalise(pair.url) or pair.url.strip()
        if url in pictures:
            overlap[pictures[url]["source"], label] += 1
        picture = pictures.setdefault(url, {"uid": picture_uid(url), "url": url, "captions": [], "source": label, "extra": {}, "member": None})
        picture["captions"] += [text for text in kept if text not in picture["captions"]]
        picture["extra"] = filters.present(pair.extra) | picture["extra"]
        picture["member"] = picture["member"] or pair.member
    return list(pictures.values()), rejected, overlap


def checked(folder: Path, *sources: Listed, asked: FilterConfig = PLAIN, samples_per_shard: int = 100) -> RowCounts:
    """Build, and compare everything with the plain way."""
    counts, rows, rejected = built(folder, *sources, asked=asked, samples_per_shard=samples_per_shard)
    expected, expected_rejected, overlap = plainly(sources, asked)
    found = [{**row, "extra": json.loads(row["extra"] or "{}"), "member": member_of(row)} for row in rows]
    assert [{name: row[name] for name in expected[0]} for row in found] == expected
    without_text = [{name: row[name] for name in ("source", "row", "reason")} for row in rejected]
    assert sorted(without_text, key=str) == sorted(expected_rejected, key=str)
    assert counts.rejected == Counter(row["reason"] for row in expected_rejected)
    assert {(first, later): rows for first, row in counts.overlap.items() for later, rows in row.items()} == overlap
    assert (counts.rows, counts.pictures, counts.merged) == (sum(len(s.given) for s in sources), len(expected), overlap.total())
    assert counts.captions == sum(len(row["captions"]) for row in expected) == sum(one.captions for one in counts.sources.values())
    for label, one in counts.sources.items():
        assert one.rows == sum(len(source.given) for source in sources if source.label == label)
        assert one.pictures == sum(row["source"] == label for row in expected)
    return counts


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few hundred rows then take the way that a few hundred million take."""
    monkeypatch.setattr(pair_table, "CHUNK_ROWS", 7)
    monkeypatch.setattr(merging, "ROWS_AT_A_TIME", 3)
    monkeypatch.setattr(parts, "PART_ROWS", 25)


def test_captions_of_one_url_are_merged_in_order_each_once_across_lists(tmp_path: Path) -> None:
    first = pairs("cc3m", ("http://a.com/1", "dog"), ("http://a.com/2", "cat"), ("HTTP://A.com:80/1#top", "brown  dog"), ("http://a.com/1", "dog"))
    second = pairs("cc12m", ("http://a.com/2", "tabby"), ("http://a.com/3", "bird"))
    counts, rows, rejected = built(tmp_path, first, second)
    assert tuple(rows[0]) == COLUMNS
    assert [(row["url"], row["captions"], row["source"]) for row in rows] == [
        ("http://a.com/1", ["dog", "brown dog"], "cc3m"),
        ("http://a.com/2", ["cat", "tabby"], "cc3m"),
        ("http://a.com/3", ["bird"], "cc12m"),
    ]
    assert (counts.rows, counts.pictures, counts.merged, counts.captions, counts.rejected) == (6, 3, 3, 5, {})
    assert counts.overlap == {"cc3m": {"cc3m": 2, "cc12m": 1}, "cc12m": {}}
    assert [(one.rows, one.pictures, one.merged, one.captions) for one in counts.sources.values()] == [(4, 2, 2, 3), (2, 1, 1, 2)]
    assert rejected == []


def test_further_columns_are_merged_and_the_first_value_wins(tmp_path: Path) -> None:
    first = Listed("a", [Pair("http://a.com/1", ("x",), {"clip": 0.3, "nsfw": None}), Pair("http://a.com/2", ("y",))])
    second = Listed("b", [Pair("http://a.com/1", ("x",), {"nsfw": "no", "clip": 0.9}), Pair("http://a.com/2", ("y",), {"clip": float("nan")})])
    _, rows, _ = built(tmp_path, first, second)
    assert [row["extra"] for row in rows] == ['{"clip": 0.3, "nsfw": "no"}', None]


def test_a_place_in_an_archive_wins_over_the_web(tmp_path: Path) -> None:
    inside, other = Member("/data/vg.zip", 30, 900, deflated=True, crc32=2**32 - 1), Member("/data/other.zip", 1, 2)
    first = Listed("web", [Pair("http://a.com/1", ("x",)), Pair("http://a.com/2", ("x",))])
    second = Listed("vg", [Pair("http://a.com/1", ("y",), member=inside), Pair("http://a.com/1", ("z",), member=other)])
    _, rows, _ = built(tmp_path, first, second)
    assert [(row["source"], member_of(row)) for row in rows] == [("web", inside), ("web", None)]


def test_rejected_rows_are_counted_by_reason_and_kept_with_their_text(tmp_path: Path) -> None:
    source = pairs("a", ("http://a.com/1", "dog"), ("http://a.com/2", ""), ("", "cat"), ("http://a.com/3", "\x00"))
    source.given.append(RejectedRow(9, "not_json", "half a pair \ud83d"))
    counts, rows, rejected = built(tmp_path, source)
    assert (counts.rows, counts.pictures, counts.rejected) == (5, 1, {"no_caption": 2, "no_url": 1, "not_json": 1})
    assert [tuple(row.values()) for row in rejected] == [
        ("a", 2, "no_caption", "http://a.com/2"),
        ("a", 3, "no_url", ""),
        ("a", 4, "no_caption", "http://a.com/3"),
        ("a", 9, "not_json", "half a pair ?"),
    ]
    assert len(rows) == 1


def test_captions_are_dropped_by_their_length_and_a_row_without_others_is_rejected(tmp_path: Path) -> None:
    source = pairs("a", ("http://a.com/1", ["dog", "a brown dog"]), ("http://a.com/2", "cat"))
    counts, rows, rejected = built(tmp_path, source, asked=FilterConfig(captions=CaptionConfig(min_words=2)))
    assert [row["captions"] for row in rows] == [["a brown dog"]]
    assert (counts.sources["a"].dropped_captions, counts.rejected) == ({"too_few_words": 1}, {"too_few_words": 1})
    assert [(row["row"], row["text"]) for row in rejected] == [(2, "cat")]


def test_a_caption_of_too_many_rows_is_dropped_from_all_of_them(tmp_path: Path) -> None:
    first = pairs("a", ("http://a.com/1", ["Shop", "a dog"]), ("http://a.com/2", "Shop"), ("http://a.com/2", "a cat"))
    second = pairs("b", ("http://a.com/3", "Shop"), ("http://a.com/4", "a dog"), ("http://a.com/5", "shop"))
    counts, rows, rejected = built(tmp_path, first, second, asked=FilterConfig(captions=CaptionConfig(max_repeats=2)))
    assert [(row["url"][-1], row["captions"]) for row in rows] == [("1", ["a dog"]), ("2", ["a cat"]), ("4", ["a dog"]), ("5", ["shop"])]
    assert [(row["source"], row["row"], row["reason"], row["text"]) for row in rejected] == [
        ("a", 2, "repeated_caption", "Shop"),
        ("b", 1, "repeated_caption", "Shop"),
    ]
    assert (counts.pictures, counts.merged, counts.dropped_captions) == (4, 0, {"repeated_caption": 1})


def test_rows_are_rejected_by_a_further_column(tmp_path: Path) -> None:
    source = Listed("a", [Pair(f"http://a.com/{n}", ("x",), {"clip": n / 10}) for n in range(5)] + [Pair("http://a.com/9", ("x",))])
    asked = FilterConfig.model_validate({"columns": [{"column": "clip", "min": 0.3, "missing": "drop"}]})
    counts, rows, rejected = built(tmp_path, source, asked=asked)
    assert [row["url"][-1] for row in rows] == ["3", "4"]
    assert counts.rejected == {"clip_too_low": 3, "clip_missing": 1}
    assert [row["row"] for row in rejected] == [1, 2, 3, 6]


def test_a_filter_for_a_column_that_no_list_has_is_the_users_mistake(tmp_path: Path) -> None:
    source = Listed("a", [Pair("http://a.com/1", ("x",), {"clip_score": 0.3})])
    asked = FilterConfig.model_validate({"columns": [{"column": "clip", "min": 0.3}]})
    with pytest.raises(DataError, match=r"ingest.filters.columns: no row of the lists has a column 'clip'; further columns they bring: clip_score"):
        built(tmp_path, source, asked=asked)


def test_a_url_that_is_none_keeps_its_row(tmp_path: Path) -> None:
    counts, rows, _ = built(tmp_path, pairs("a", ("not a url ", "dog"), ("file:///etc/passwd", "cat")))
    assert [row["url"] for row in rows] == ["not a url", "file:///etc/passwd"]
    assert counts.pictures == 2


@pytest.mark.parametrize(
    ("sources", "told"), [((pairs("a", ("", "dog")),), r"a: .* among 1 rows \(no_url 1\)"), ((Listed("a"), Listed("b")), r"a, b: .*\(it is empty\)")]
)
def test_lists_without_a_usable_row_are_the_users_mistake(tmp_path: Path, sources: tuple[Listed, ...], told: str) -> None:
    with pytest.raises(DataError, match=told):
        built(tmp_path, *sources)
    assert list(tmp_path.iterdir()) == []


def test_a_lost_row_is_an_error() -> None:
    with pytest.raises(AlbefError, match="10 rows came in, 9 are accounted for"):
        RowCounts(rows=10, pictures=5, merged=3, captions=8, rejected={"no_url": 1}).check()
    with pytest.raises(AlbefError, match="3 rows were merged, the overlaps of the lists add up to 2"):
        RowCounts(rows=9, pictures=5, merged=3, captions=8, rejected={"no_url": 1}, overlap={"a": {"a": 2}}).check()


def test_counts_survive_json(tmp_path: Path) -> None:
    counts, _, _ = built(tmp_path, pairs("a", ("http://a.com/1", "dog"), ("http://a.com/1", "cat")), pairs("b", ("http://a.com/1", "dog"), ("", "x")))
    assert RowCounts.from_json(json.loads(json.dumps(asdict(counts)))) == counts


def many_rows(seed: int, number: int, pictures: int) -> list[Row]:
    """Rows of a list with every kind of repetition."""
    draw = random.Random(seed)
    rows: list[Row] = []
    for n in range(number):
        if draw.random() < 0.05:
            rows.append(RejectedRow(n + 1, draw.choice(["no_url", "not_json"]), "?"))
            continue
        host = draw.choice(["http://a.com", "http://A.com:80", "http://a.com"])
        texts = tuple(f"{draw.choice(['a dog', 'a  cat', 'bird', ' '])}{draw.choice(['', ' ', f' {n}'])}" for _ in range(draw.randint(1, 3)))
        extra = {name: draw.choice([0.1, 0.5, None, "x"]) for name in ("clip", "nsfw") if draw.random() < 0.3}
        member = Member("/a.zip", n, 100, draw.random() < 0.5) if draw.random() < 0.2 else None
        rows.append(Pair(f"{host}/{int(pictures * draw.random() ** 2)}.jpg", texts, extra, member, n + 1))
    return rows


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("captions_asked", [{}, {"max_repeats": 3}, {"min_words": 2, "max_repeats": 1}], ids=str)
def test_many_chunks_partitions_and_parts_give_the_table_that_one_dictionary_gives(tmp_path: Path, captions_asked: dict[str, int]) -> None:
    sources = [Listed("a", many_rows(1, 400, 150)), Listed("empty"), Listed("b", many_rows(2, 300, 500)), Listed("a", many_rows(3, 90, 90))]
    asked = FilterConfig.model_validate({"captions": captions_asked, "columns": [{"column": "clip", "min": 0.2}]})
    checked(tmp_path, *sources, asked=asked, samples_per_shard=10)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.integers(0, 6), st.lists(st.sampled_from(["a", "b", " a", "\x00"]), min_size=1, max_size=2)), max_size=20), max_size=3),
    st.data(),
)
def test_any_lists_give_the_table_that_one_dictionary_gives(tmp_path_factory: pytest.TempPathFactory, lists: list[Any], data: st.DataObject) -> None:
    sources = [Listed(str(n), [Pair(f"http://a.com/{url}", tuple(texts)) for url, texts in rows]) for n, rows in enumerate(lists)]
    asked = FilterConfig(captions=CaptionConfig(max_repeats=data.draw(st.sampled_from([None, 1, 2]))))
    if plainly(sources, asked)[0]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pair_table, "CHUNK_ROWS", data.draw(st.integers(1, 5)))
            checked(tmp_path_factory.mktemp("any"), *sources, asked=asked)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(("samples_per_shard", "sizes"), [(10, [20, 20, 20, 1]), (25, [25, 25, 11]), (40, [40, 21]), (100, [61]), (61, [61])])
def test_every_part_but_the_last_holds_whole_shards(tmp_path: Path, samples_per_shard: int, sizes: list[int]) -> None:
    source = pairs("a", *((f"http://a.com/{n}", "dog") for n in range(61)))
    _, rows, _ = built(tmp_path, source, samples_per_shard=samples_per_shard)
    found = sorted((tmp_path / "table").iterdir())
    assert [pq.read_metadata(path).num_rows for path in found] == sizes
    assert [path.name for path in found] == [f"{n:06d}.parquet" for n in range(len(sizes))]
    assert [row["url"] for row in rows] == [pair.url for pair in source.given if isinstance(pair, Pair)]


@pytest.mark.usefixtures("small_chunks")
def test_the_same_lists_give_the_same_bytes(tmp_path: Path) -> None:
    def folder(name: str) -> dict[str, bytes]:
        built(tmp_path / name, Listed("a", many_rows(5, 200, 50)), samples_per_shard=10)
        return {path.name: path.read_bytes() for path in (tmp_path / name).rglob("*.parquet")}

    first = folder("one")
    assert len(first) > 2
    assert folder("two") == first


@pytest.mark.usefixtures("small_chunks")
def test_a_build_that_was_stopped_anywhere_starts_again_and_nothing_of_it_is_left(tmp_path: Path) -> None:
    source = Listed("a", many_rows(6, 60, 25))
    asked = FilterConfig(captions=CaptionConfig(max_repeats=2))
    _, expected, _ = built(tmp_path / "whole", source, asked=asked, samples_per_shard=10)
    (tmp_path / "table").mkdir()
    (tmp_path / "table" / "999999.parquet").write_bytes(b"of an earlier attempt with longer lists")
    (tmp_path / "scratch" / "rows").mkdir(parents=True)

    stops = 0
    while True:
        calls = 0

        def between(stop_at: int = stops) -> None:
            nonlocal calls
            calls += 1
            if calls > stop_at:
                raise Stopped("stopped early")

        try:
            build([source], asked, 10, str(tmp_path / "table"), str(tmp_path / "rejected.parquet"), tmp_path / "scratch", between)
            break
        except Stopped:
            stops += 1
            assert not (tmp_path / "scratch").exists()
    assert stops > 30, "every chunk of every pass is a place to stop"
    assert [row for path in sorted((tmp_path / "table").iterdir()) for row in pq.read_table(path).to_pylist()] == expected


def test_a_table_on_s3_is_the_same_and_an_earlier_one_is_taken_away(tmp_path: Path, s3_bucket: str) -> None:
    source, table = Listed("a", many_rows(7, 200, 60)), storage.join(s3_bucket, "work", "table")
    built(tmp_path, source)
    storage.write_bytes(storage.join(table, "000009.parquet"), b"earlier")
    build([source], PLAIN, 100, table, storage.join(s3_bucket, "work", "rejected.parquet"), tmp_path / "scratch")
    assert storage.list_files(table) == ["000000.parquet"]
    for name in ("table/000000.parquet", "rejected.parquet"):
        assert storage.read_bytes(storage.join(s3_bucket, "work", name)) == (tmp_path / name).read_bytes()


BUILD = """
import sys
from pathlib import Path
from ingest import pair_table, parts
from ingest.config import CaptionConfig, FilterConfig
from tests.ingest.test_pair_table import Listed, many_rows

pair_table.CHUNK_ROWS, parts.PART_ROWS = 50, 100
asked, folder = FilterConfig(captions=CaptionConfig(max_repeats=2)), Path(sys.argv[1])
print("go", flush=True)
pair_table.build([Listed("a", many_rows(6, 3000, 900))], asked, 10, str(folder / "table"), str(folder / "rejected.parquet"), folder / "scratch")
"""


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_build_killed_at_any_moment_is_built_again_as_if_it_had_never_run(tmp_path: Path) -> None:
    def build_killed_after(seconds: float | None) -> bool:
        """Whether it was killed before it was done."""
        root = Path(__file__).parents[2]
        command = [sys.executable, "-c", BUILD, str(tmp_path / "killed")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root, env=os.environ | {"PYTHONPATH": str(root)}) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"go\n"
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(seconds) != 0
            process.kill()
            return True

    (tmp_path / "killed").mkdir()
    started = time.monotonic()
    assert not build_killed_after(None)
    whole, took = files_of(tmp_path / "killed"), time.monotonic() - started
    assert any(name.startswith("table/000003") for name in whole)
    killed = [build_killed_after(took * share / 8) for share in range(1, 8)]
    assert any(killed)
    assert not build_killed_after(None)
    assert files_of(tmp_path / "killed") == whole
