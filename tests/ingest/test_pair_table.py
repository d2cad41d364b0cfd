"""A picture is one row with all its captions, and no row of a list is lost."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.config import SourceConfig
from ingest.pair_table import RowCounts, build, normalise, picture_uid
from pipeline.core.errors import AlbefError, DataError


def tsv(path: Path, text: str, name: str | None = None) -> SourceConfig:
    path.write_text(text)
    return SourceConfig(type="tsv", path=str(path), name=name, url=0, caption=1, header=False)


def built(folder: Path, *sources: SourceConfig) -> tuple[RowCounts, list[dict[str, Any]], list[dict[str, Any]]]:
    counts = build(sources, str(folder / "table.parquet"), str(folder / "rejected.parquet"))
    return counts, pq.read_table(folder / "table.parquet").to_pylist(), pq.read_table(folder / "rejected.parquet").to_pylist()


def test_captions_of_one_url_are_merged_in_order_each_once_across_lists(tmp_path: Path) -> None:
    first = tsv(tmp_path / "cc3m.tsv", "http://a.com/1\tdog\nhttp://a.com/2\tcat\nHTTP://A.com:80/1#top\tbrown dog\nhttp://a.com/1\tdog\n")
    second = tsv(tmp_path / "b.tsv", "http://a.com/2\ttabby\nhttp://a.com/3\tbird\n", name="cc12m")
    counts, rows, rejected = built(tmp_path, first, second)
    assert [(row["url"], row["captions"], row["source"]) for row in rows] == [
        ("http://a.com/1", ["dog", "brown dog"], "cc3m"),
        ("http://a.com/2", ["cat", "tabby"], "cc3m"),
        ("http://a.com/3", ["bird"], "cc12m"),
    ]
    assert counts == RowCounts(rows=6, pictures=3, merged=3, captions=5, rejected={})
    assert rejected == []


def test_the_uid_depends_on_the_url_alone(tmp_path: Path) -> None:
    _, rows, _ = built(tmp_path, tsv(tmp_path / "a.tsv", "http://A.com/x y\tdog\n"))
    assert rows[0]["uid"] == picture_uid("http://a.com/x%20y")
    assert len(rows[0]["uid"]) == 32


def test_rejected_rows_are_counted_by_reason_and_kept_with_their_text(tmp_path: Path) -> None:
    counts, rows, rejected = built(tmp_path, tsv(tmp_path / "a.tsv", "http://a.com/1\tdog\nhttp://a.com/2\n\tcat\nhttp://a.com/3\ta\tb\n"))
    assert counts == RowCounts(rows=4, pictures=1, merged=0, captions=1, rejected={"wrong_number_of_fields": 2, "no_url": 1})
    assert [(row["source"], row["row"], row["reason"]) for row in rejected] == [
        ("a", 2, "wrong_number_of_fields"),
        ("a", 3, "no_url"),
        ("a", 4, "wrong_number_of_fields"),
    ]
    assert rejected[0]["text"] == "http://a.com/2"
    assert len(rows) == 1


def test_a_url_that_is_none_keeps_its_row(tmp_path: Path) -> None:
    counts, rows, _ = built(tmp_path, tsv(tmp_path / "a.tsv", "not a url\tdog\nfile:///etc/passwd\tcat\n"))
    assert [row["url"] for row in rows] == ["not a url", "file:///etc/passwd"]
    assert counts.pictures == 2


def test_a_list_without_a_usable_row_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no row with a URL and a caption among 1 rows \(no_url 1\)"):
        built(tmp_path, tsv(tmp_path / "a.tsv", "\tdog\n"))


def test_a_lost_row_is_an_error() -> None:
    with pytest.raises(AlbefError, match="10 rows came in, 9 are accounted for"):
        RowCounts(rows=10, pictures=5, merged=3, captions=8, rejected={"no_url": 1}).check()


@pytest.mark.parametrize(
    ("spelling", "normal"),
    [
        ("  HTTP://Example.COM:80/a.jpg#x ", "http://example.com/a.jpg"),
        ("https://example.com:443", "https://example.com/"),
        ("http://example.com:8080/a", "http://example.com:8080/a"),
        ("http://example.com/ü.jpg", "http://example.com/%C3%BC.jpg"),
        ("http://münchen.de/", "http://xn--mnchen-3ya.de/"),
        ("ftp://example.com/", None),
        ("http://", None),
        ("example.com/a.jpg", None),
    ],
)
def test_spellings_of_a_url(spelling: str, normal: str | None) -> None:
    assert normalise(spelling) == normal


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40))
def test_any_text_is_normalised_or_refused_and_normalising_again_changes_nothing(text: str) -> None:
    for url in (text, f"http://example.com/{text}", f"http://{text}/"):
        once = normalise(url)
        assert once is None or normalise(once) == once
