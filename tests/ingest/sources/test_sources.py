"""Lists are read row by row; what cannot be used is counted with its reason."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ingest.config import SourceConfig
from ingest.pair import Pair, RejectedRow, Row
from ingest.sources import SOURCES
from pipeline.core.errors import DataError


def read(kind: str, path: Path, **options: Any) -> list[Row]:
    source = SourceConfig.model_validate({"type": kind, "path": str(path)} | options)
    return list(SOURCES[kind](source))


def test_a_tsv_caption_with_an_unbalanced_quote_survives_and_swallows_nobody(tmp_path: Path) -> None:
    path = tmp_path / "list.tsv"
    path.write_text('http://a/1\t"so it begins\nhttp://a/2\tit\'s 6" tall\nhttp://a/3\t"quoted"\n')
    assert read("tsv", path, url=0, caption=1, header=False) == [
        Pair("http://a/1", ('"so it begins',)),
        Pair("http://a/2", ("it's 6\" tall",)),
        Pair("http://a/3", ('"quoted"',)),
    ]


def test_tsv_columns_are_found_by_the_header_or_by_position(tmp_path: Path) -> None:
    named, bare = tmp_path / "named.tsv", tmp_path / "bare.tsv"
    named.write_bytes(b"\xef\xbb\xbfcaption\tid\turl\r\na dog\t7\thttp://a/1\r\n")
    bare.write_text("a dog\thttp://a/1\n")
    assert read("tsv", named) == read("tsv", bare, url=1, caption=0, header=False) == [Pair("http://a/1", ("a dog",))]


def test_tsv_rows_that_cannot_be_used_are_named_with_line_and_reason(tmp_path: Path) -> None:
    path = tmp_path / "list.tsv"
    path.write_bytes(b"url\tcaption\nhttp://a/1\tone\textra\nhttp://a/2\n\n\tno url\nhttp://a/3\t \nhttp://a/4\t\xff\xfe\nhttp://a/5\tgood\n")
    rows = read("tsv", path)
    assert [(row.row, row.reason) for row in rows if isinstance(row, RejectedRow)] == [
        (2, "wrong_number_of_fields"),
        (3, "wrong_number_of_fields"),
        (5, "no_url"),
        (6, "no_caption"),
        (7, "not_utf8"),
    ]
    assert rows[-1] == Pair("http://a/5", ("good",))


def test_a_jsonl_row_has_one_caption_or_a_list(tmp_path: Path) -> None:
    path = tmp_path / "list.jsonl"
    lines = [json.dumps({"url": "http://a/1", "caption": "one"}), "", json.dumps({"url": "http://a/2", "caption": ["one", "two", ""]}), "{broken", "[1]"]
    lines += [json.dumps({"url": "http://a/3"}), '{"url": "http://a/4", "caption": "half a pair \\ud83d"}', json.dumps({"url": 7, "caption": "x"})]
    path.write_text("\n".join(lines))
    rows = read("jsonl", path)
    assert rows[:2] == [Pair("http://a/1", ("one",)), Pair("http://a/2", ("one", "two"))]
    assert [(row.row, row.reason) for row in rows[2:] if isinstance(row, RejectedRow)] == [
        (4, "not_json"),
        (5, "not_an_object"),
        (6, "no_caption"),
        (7, "not_unicode"),
        (8, "no_url"),
    ]


def test_a_parquet_row_has_one_caption_or_a_list(tmp_path: Path) -> None:
    texts, lists = tmp_path / "texts.parquet", tmp_path / "lists.parquet"
    pq.write_table(pa.table({"u": ["http://a/1", None], "c": ["one", "two"], "other": [1, 2]}), texts)
    pq.write_table(pa.table({"url": ["http://a/1", "http://a/2"], "caption": [["one", "two"], []]}), lists)
    assert read("parquet", texts, url="u", caption="c") == [Pair("http://a/1", ("one",)), RejectedRow(2, "no_url", "None")]
    assert read("parquet", lists) == [Pair("http://a/1", ("one", "two")), RejectedRow(2, "no_caption", "http://a/2")]


def test_row_numbers_of_a_parquet_list_go_on_over_its_batches(tmp_path: Path) -> None:
    path, rows = tmp_path / "long.parquet", 20_001
    pq.write_table(pa.table({"url": [f"http://a/{n}" for n in range(rows)], "caption": ["x"] * (rows - 1) + [""]}), path)
    found = read("parquet", path)
    assert len(found) == rows
    assert found[-1] == RejectedRow(rows, "no_caption", f"http://a/{rows - 1}")


@pytest.mark.parametrize("kind", list(SOURCES))
def test_a_missing_list_is_named_in_one_line(kind: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.list: not found") as caught:
        read(kind, tmp_path / "nowhere.list")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("parquet", {"url": "link"}, "no column 'link'"),
        ("parquet", {"caption": "text"}, "its columns: url, caption"),
        ("tsv", {"url": "link"}, "no column 'link'"),
        ("tsv", {"url": 5}, "no column 5"),
        ("tsv", {"header": False}, "must be a position"),
    ],
)
def test_a_missing_column_is_named_with_those_there_are(kind: str, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "list"
    if kind == "parquet":
        pq.write_table(pa.table({"url": ["http://a"], "caption": ["x"]}), path)
    else:
        path.write_text("url\tcaption\nhttp://a\tx\n")
    with pytest.raises(DataError, match=message):
        read(kind, path, **options)


def test_what_is_no_parquet_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "list.parquet"
    path.write_text("url\tcaption\n")
    with pytest.raises(DataError, match="not a parquet file"):
        read("parquet", path)
