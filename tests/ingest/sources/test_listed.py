"""Lists whose columns the user names (csv, tsv, parquet, jsonl) are read row by row; what cannot be used is counted with its reason."""

import csv
import datetime
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingest.pair import Pair, RejectedRow, Row
from pipeline.core import storage
from pipeline.core.errors import ConfigError, DataError

Read = Callable[..., list[Row]]
Reasons = Callable[[list[Row]], list[tuple[int, str]]]
LISTED = ("csv", "tsv", "parquet", "jsonl")


def test_a_tsv_caption_with_an_unbalanced_quote_survives_and_swallows_nobody(tmp_path: Path, read: Read) -> None:
    path = tmp_path / "list.tsv"
    path.write_text('http://a/1\t"so it begins\nhttp://a/2\tit\'s 6" tall\nhttp://a/3\t"quoted"\n')
    assert read("tsv", path, url=0, caption=1, header=False) == [
        Pair("http://a/1", ('"so it begins',)),
        Pair("http://a/2", ("it's 6\" tall",)),
        Pair("http://a/3", ('"quoted"',)),
    ]


@pytest.mark.parametrize(("kind", "separator"), [("tsv", "\t"), ("csv", ",")])
def test_columns_are_found_by_the_header_or_by_position(kind: str, separator: str, tmp_path: Path, read: Read) -> None:
    named, bare = tmp_path / "named", tmp_path / "bare"
    named.write_bytes(b"\xef\xbb\xbfcaption\tid\turl\r\na dog\t7\thttp://a/1\r\n".replace(b"\t", separator.encode()))
    bare.write_text(f"a dog{separator}http://a/1\n")
    assert read(kind, named) == read(kind, bare, url=1, caption=0, header=False) == [Pair("http://a/1", ("a dog",))]
    assert read(kind, named, columns=["id"]) == [Pair("http://a/1", ("a dog",), {"id": "7"})]
    assert read(kind, bare, url=1, caption=0, header=False, columns={"words": 0}) == [Pair("http://a/1", ("a dog",), {"words": "a dog"})]


def test_tsv_rows_that_cannot_be_used_are_named_with_line_and_reason(tmp_path: Path, read: Read, reasons_of: Reasons) -> None:
    path = tmp_path / "list.tsv"
    path.write_bytes(b"url\tcaption\nhttp://a/1\tone\textra\nhttp://a/2\n\n\tno url\nhttp://a/3\t \nhttp://a/4\t\xff\xfe\nhttp://a/5\tgood\n")
    rows = read("tsv", path)
    assert reasons_of(rows) == [(2, "wrong_number_of_fields"), (3, "wrong_number_of_fields"), (5, "no_url"), (6, "no_caption"), (7, "not_utf8")]
    assert rows[-1] == Pair("http://a/5", ("good",))


def test_csv_fields_may_hold_commas_quotes_and_line_feeds(tmp_path: Path, read: Read) -> None:
    path = tmp_path / "list.csv"
    path.write_text('url,caption\r\nhttp://a/1,"a dog, a ""cat""\nand a bird"\r\nhttp://a/2,plain 6" nail\r\n', newline="")
    rows = read("csv", path)
    assert rows == [Pair("http://a/1", ('a dog, a "cat"\nand a bird',)), Pair("http://a/2", ('plain 6" nail',))]
    assert [row.row for row in rows] == [2, 4], "the lines at which they begin"


def test_a_csv_quote_that_nobody_closes_costs_its_own_line_and_no_other(tmp_path: Path, read: Read, reasons_of: Reasons) -> None:
    path = tmp_path / "list.csv"
    good = [f"http://a/{n},caption {n}" for n in range(5_000)]
    lines = ["url,caption", 'http://b/1,"never closed', *good, 'http://b/2,"closed"badly', "http://b/3,one,two", 'http://b/4,"open at the end']
    path.write_text("\n".join(lines))
    rows = read("csv", path)
    assert reasons_of(rows) == [(2, "not_csv"), (5003, "not_csv"), (5004, "wrong_number_of_fields"), (5005, "not_csv")]
    assert [row.url for row in rows if isinstance(row, Pair)] == [f"http://a/{n}" for n in range(5_000)]


def test_csv_bytes_that_are_no_utf8_and_nuls_do_not_disturb_their_neighbours(tmp_path: Path, read: Read, reasons_of: Reasons) -> None:
    path = tmp_path / "list.csv"
    path.write_bytes(b"url,caption\nhttp://a/1,caf\xe9\n\nhttp://a/2,nul \x00 inside\n")
    rows = read("csv", path)
    assert reasons_of(rows) == [(2, "not_utf8")]
    assert rows[1] == Pair("http://a/2", ("nul \x00 inside",))


def test_a_csv_whose_first_row_cannot_be_read_is_refused(tmp_path: Path, read: Read) -> None:
    (tmp_path / "list.csv").write_text('"url,caption\nhttp://a/1,x\n')
    with pytest.raises(DataError, match=r"list\.csv: its first row cannot be read \(not_csv\)"):
        read("csv", tmp_path / "list.csv")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(captions=st.lists(st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda text: bool(text.strip())), min_size=1, max_size=8))
def test_what_a_csv_writer_wrote_is_read_back(captions: list[str], tmp_path: Path, read: Read) -> None:
    path = tmp_path / "list.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([("url", "caption"), *((f"http://a/{n}", text) for n, text in enumerate(captions))])
    assert read("csv", path) == [Pair(f"http://a/{n}", (text,)) for n, text in enumerate(captions)]


def test_a_jsonl_row_has_one_caption_or_a_list(tmp_path: Path, read: Read, reasons_of: Reasons) -> None:
    path = tmp_path / "list.jsonl"
    lines = [json.dumps({"url": "http://a/1", "caption": "one"}), "", json.dumps({"url": "http://a/2", "caption": ["one", "two", ""]}), "{broken", "[1]"]
    lines += [json.dumps({"url": "http://a/3"}), '{"url": "http://a/4", "caption": "half a pair \\ud83d"}', json.dumps({"url": 7, "caption": "x"})]
    path.write_text("\n".join(lines))
    rows = read("jsonl", path)
    assert rows[:2] == [Pair("http://a/1", ("one",)), Pair("http://a/2", ("one", "two"))]
    assert reasons_of(rows) == [(4, "not_json"), (5, "not_an_object"), (6, "no_caption"), (7, "not_unicode"), (8, "no_url")]


def test_jsonl_columns_keep_their_types_and_may_be_missing(tmp_path: Path, read: Read, reasons_of: Reasons) -> None:
    path = tmp_path / "list.jsonl"
    rows = [{"similarity": 0.31, "faces": [[0, 0, 0.5, 1]]}, {}, {"similarity": None}, {"faces": "\ud83d"}]
    path.write_text("".join(json.dumps({"url": "http://a", "caption": "x", **row}) + "\n" for row in rows))
    found = read("jsonl", path, columns={"clip": "similarity", "faces": "faces"})
    assert [row.extra for row in found[:3] if isinstance(row, Pair)] == [{"clip": 0.31, "faces": [[0, 0, 0.5, 1]]}, {}, {"clip": None}]
    assert reasons_of(found) == [(4, "not_unicode")]


def test_a_parquet_row_has_one_caption_or_a_list(tmp_path: Path, read: Read) -> None:
    texts, lists = tmp_path / "texts.parquet", tmp_path / "lists.parquet"
    pq.write_table(pa.table({"u": ["http://a/1", None], "c": ["one", "two"], "other": [1, 2]}), texts)
    pq.write_table(pa.table({"url": ["http://a/1", "http://a/2"], "caption": [["one", "two"], []]}), lists)
    assert read("parquet", texts, url="u", caption="c") == [Pair("http://a/1", ("one",)), RejectedRow(2, "no_url", "None")]
    assert read("parquet", texts, url="u", caption="c", columns={"n": "other", "text": "c"})[0] == Pair("http://a/1", ("one",), {"n": 1, "text": "one"})
    assert read("parquet", lists) == [Pair("http://a/1", ("one", "two")), RejectedRow(2, "no_caption", "http://a/2")]


def test_row_numbers_of_a_parquet_list_go_on_over_its_batches(tmp_path: Path, read: Read) -> None:
    path, rows = tmp_path / "long.parquet", 20_001
    pq.write_table(pa.table({"url": [f"http://a/{n}" for n in range(rows)], "caption": ["x"] * (rows - 1) + [""]}), path)
    found = read("parquet", path)
    assert [row.row for row in found] == list(range(1, rows + 1))
    assert found[-1] == RejectedRow(rows, "no_caption", f"http://a/{rows - 1}")


def test_a_parquet_column_that_json_cannot_hold_is_named(tmp_path: Path, read: Read) -> None:
    path = tmp_path / "list.parquet"
    pq.write_table(pa.table({"url": ["http://a"], "caption": ["x"], "seen": [datetime.date(2020, 1, 1)]}), path)
    with pytest.raises(DataError, match=r"column 'seen' .* is date32.*, which JSON cannot hold"):
        read("parquet", path, columns=["seen"])


@pytest.mark.parametrize("kind", LISTED)
def test_a_missing_list_is_named_in_one_line(kind: str, tmp_path: Path, read: Read) -> None:
    with pytest.raises(DataError, match=r"nowhere\.list: not found") as caught:
        read(kind, tmp_path / "nowhere.list")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("parquet", {"url": "link"}, "no column 'link'"),
        ("parquet", {"caption": "text"}, "its columns: url, caption"),
        ("parquet", {"columns": ["clip"]}, r"no column 'clip' \(setting columns.clip"),
        ("tsv", {"url": "link"}, "no column 'link'"),
        ("tsv", {"url": 5}, "no column 5"),
        ("tsv", {"columns": {"clip": 2}}, r"no column 2 \(setting columns.clip"),
        ("tsv", {"header": False}, "must be a position"),
        ("csv", {"caption": "text"}, "no column 'text' .*: url, caption"),
    ],
)
def test_a_missing_column_is_named_with_those_there_are(kind: str, options: dict[str, Any], message: str, tmp_path: Path, read: Read) -> None:
    path = tmp_path / "list"
    if kind == "parquet":
        pq.write_table(pa.table({"url": ["http://a"], "caption": ["x"]}), path)
    else:
        path.write_text("url\tcaption\nhttp://a\tx\n".replace("\t", "," if kind == "csv" else "\t"))
    with pytest.raises(DataError, match=message):
        read(kind, path, **options)


def test_what_is_no_parquet_file_is_named(tmp_path: Path, read: Read) -> None:
    path = tmp_path / "list.parquet"
    path.write_text("url\tcaption\n")
    with pytest.raises(DataError, match="not a parquet file"):
        read("parquet", path)


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_an_empty_list_has_no_rows(kind: str, tmp_path: Path, read: Read) -> None:
    (tmp_path / "empty").write_bytes(b"")
    assert read(kind, tmp_path / "empty") == []


def test_a_gzipped_list_is_read_like_a_plain_one_and_a_cut_one_is_refused(tmp_path: Path, read: Read) -> None:
    plain = b"url\tcaption\n" + b"".join(b"http://a/%d\tcaption %d\n" % (n, n * n) for n in range(5_000))
    whole, cut = tmp_path / "list.tsv.gz", tmp_path / "cut.tsv.gz"
    whole.write_bytes(gzip.compress(plain))
    cut.write_bytes(whole.read_bytes()[:-100])
    (tmp_path / "no.tsv.gz").write_bytes(plain)
    assert read("tsv", whole)[4_999] == Pair("http://a/4999", (f"caption {4999 * 4999}",))
    for path in (cut, tmp_path / "no.tsv.gz"):
        with pytest.raises(DataError, match=f"{path.name}: damaged gzip"):
            read("tsv", path)


def test_lists_on_s3_have_the_same_rows(tmp_path: Path, s3_bucket: str, read: Read) -> None:
    table = {"url": [f"http://a/{n}" for n in range(3_000)], "caption": [f"caption {n} é" for n in range(3_000)], "n": [str(n) for n in range(3_000)]}
    parquet = io.BytesIO()
    pq.write_table(pa.table(table), parquet)
    rows = list(zip(*table.values(), strict=True))
    files = {
        "tsv": "".join("\t".join(row) + "\n" for row in [tuple(table), *rows]).encode(),
        "csv": "".join(",".join(row) + "\r\n" for row in [tuple(table), *rows]).encode(),
        "jsonl": "".join(json.dumps(dict(zip(table, row, strict=True))) + "\n" for row in rows).encode(),
        "parquet": parquet.getvalue(),
    }
    for kind, data in files.items():
        storage.write_bytes(f"{s3_bucket}/list.{kind}", data)
        assert read(kind, f"{s3_bucket}/list.{kind}", columns=["n"]) == [Pair(url, (caption,), {"n": n}) for url, caption, n in rows], kind


def test_a_source_is_known_by_what_it_reads_and_not_by_where_it_lies(tmp_path: Path, source: Callable[..., Any]) -> None:
    first, moved, changed = tmp_path / "list.tsv", tmp_path / "other" / "list.tsv", tmp_path / "changed" / "list.tsv"
    for path, text in ((first, "url\tcaption\n"), (moved, "url\tcaption\n"), (changed, "url\tcaptioM\n")):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    mark = source("tsv", first).mark()
    assert source("tsv", moved, paper_pictures=3).mark() == mark
    others = [source("tsv", changed), source("tsv", first, header=False), source("tsv", first, name="x"), source("tsv", first, store={"image_size": 3})]
    assert all(other.mark() != mark for other in others)
    assert json.loads(json.dumps(mark)) == mark


def test_two_sources_of_one_name_are_refused() -> None:
    from ingest.config import IngestConfig
    from pipeline.core.config import validate

    sources = [{"type": "tsv", "path": "a/train.tsv"}, {"type": "csv", "path": "b/train.csv"}]
    with pytest.raises(ConfigError, match="2 of them are called 'train' in the dataset; give each a `name`"):
        validate(IngestConfig, {"output": "x", "sources": sources}, "run.yaml")
