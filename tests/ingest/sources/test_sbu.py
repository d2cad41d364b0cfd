"""SBU in both formats its owners shipped."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ingest.pair import Pair, Row
from pipeline.core.errors import DataError

Read = Callable[..., list[Row]]
Reasons = Callable[[list[Row]], list[tuple[int, str]]]

URLS = [f"http://static.flickr.com/{2700 + n}/{4500000000 + n}_ab2cd{n}.jpg" for n in range(6)]
CAPTIONS = ["Interior design of modern white and brown living room", 'The "Egyptian" cat statue\tby the floor clock', "Café in Zürich", "", "   ", "x" * 5_000]


def write_json(path: Path, **lists: Any) -> Path:
    path.write_text(json.dumps(lists))
    return path


def test_the_json_of_parallel_lists_is_read_pair_by_pair(tmp_path: Path, read: Read, reasons_of: Reasons) -> None:
    users = [f"4726N0{n}" for n in range(6)]
    path = write_json(tmp_path / "sbu-captions-all.json", image_urls=URLS, captions=CAPTIONS, user_ids=users)
    rows = read("sbu", path)
    assert reasons_of(rows) == [(4, "no_caption"), (5, "no_caption")]
    assert [row for row in rows if isinstance(row, Pair)] == [Pair(URLS[n], (CAPTIONS[n],), {"user_id": users[n]}) for n in (0, 1, 2, 5)]
    without_users = write_json(tmp_path / "no_users.json", image_urls=URLS, captions=CAPTIONS)
    assert read("sbu", without_users)[0] == Pair(URLS[0], (CAPTIONS[0],))


def test_the_two_text_files_go_line_by_line_with_odd_bytes_read_as_latin_1(tmp_path: Path, read: Read, reasons_of: Reasons) -> None:
    urls, captions = tmp_path / "SBU_captioned_photo_dataset_urls.txt", tmp_path / "SBU_captioned_photo_dataset_captions.txt"
    urls.write_bytes("\n".join(URLS).encode())
    lines = [b"plain", "utf-8 é".encode(), "latin-1 é".encode("latin-1"), b"", b'nul \x00, tab \t, quote "\r', b"x" * 5_000]
    captions.write_bytes(b"\n".join(lines))
    rows = read("sbu", urls, captions=str(captions))
    expected = ["plain", "utf-8 é", "latin-1 é", None, 'nul \x00, tab \t, quote "', "x" * 5_000]
    assert [row.captions[0] if isinstance(row, Pair) else None for row in rows] == expected
    assert reasons_of(rows) == [(4, "no_caption")]
    assert [row.url for row in rows if isinstance(row, Pair)] == [url for url, caption in zip(URLS, expected, strict=True) if caption]


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"image_urls": URLS, "captions": CAPTIONS[1:]}, r"different lengths \(image_urls 6, captions 5\)"),
        ({"image_urls": URLS, "captions": CAPTIONS, "user_ids": ["x"]}, "user_ids 1"),
        ({"image_urls": URLS}, r"sbu\.json: no key 'captions'; found an object with image_urls"),
        ({"image_urls": "http://a", "captions": CAPTIONS}, "'image_urls' is a str; expected a list"),
    ],
)
def test_lists_that_do_not_go_together_are_refused(lists: dict[str, Any], message: str, tmp_path: Path, read: Read) -> None:
    with pytest.raises(DataError, match=message):
        read("sbu", write_json(tmp_path / "sbu.json", **lists))


@pytest.mark.parametrize("text", ["{broken", "[1, 2]", ""])
def test_what_is_no_sbu_json_is_named(text: str, tmp_path: Path, read: Read) -> None:
    (tmp_path / "sbu.json").write_text(text)
    with pytest.raises(DataError, match=r"sbu\.json: (not valid JSON|no key 'image_urls'; found a list)"):
        read("sbu", tmp_path / "sbu.json")


def test_text_files_of_different_lengths_are_refused_naming_the_shorter(tmp_path: Path, read: Read) -> None:
    short, long = tmp_path / "short.txt", tmp_path / "long.txt"
    short.write_text("http://a/1\nhttp://a/2\n")
    long.write_text("one\ntwo\nthree\n")
    with pytest.raises(DataError, match=r"short\.txt: has 2 lines, .*long\.txt has more"):
        read("sbu", short, captions=str(long))
    with pytest.raises(DataError, match=r"short\.txt: has 2 lines, .*long\.txt has more"):
        read("sbu", long, captions=str(short))


def test_a_text_file_of_urls_asks_for_the_one_with_the_captions(source: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="name the one with the captions"):
        source("sbu", "SBU_captioned_photo_dataset_urls.txt")
