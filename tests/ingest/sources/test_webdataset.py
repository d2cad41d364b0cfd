"""Tars that img2dataset wrote are a source: every sample with its captions, nothing downloaded."""

import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ingest.archives import WINDOW_BYTES, read_member
from ingest.pair import Pair, Row
from pipeline.core import storage
from pipeline.core.errors import DataError

Read = Callable[..., list[Row]]
Reasons = Callable[[list[Row]], list[tuple[int, str]]]


def sample(key: str, picture: bytes, text: str | None, metadata: Any) -> dict[str, bytes]:
    """In img2dataset's order: picture, text, json with an indent."""
    members = {f"{key}.jpg": picture}
    if text is not None:
        members[f"{key}.txt"] = text.encode()
    if metadata is not None:
        members[f"{key}.json"] = json.dumps(metadata, indent=4).encode() if not isinstance(metadata, bytes) else metadata
    return members


def metadata(key: str, **values: Any) -> dict[str, Any]:
    return {"caption": "of the json", "url": f"https://a.com/{key}.jpg", "key": key, "status": "success", "width": 512, "similarity": 0.3, **values}


def picture(n: int) -> bytes:
    return b"%05d" % n + bytes([n % 251]) * (37 * n)


@pytest.fixture
def mirror(tmp_path: Path, make_tar: Callable[..., str]) -> Path:
    folder = tmp_path / "cc3m-wds"
    folder.mkdir()
    first: dict[str, bytes] = {}
    for n in range(40):
        first |= sample(f"{n:09d}", picture(n), f'caption {n} "é"', metadata(f"{n:09d}"))
    second = {
        **sample("000010000", b"no url", "one", metadata("x", url=None)),
        **sample("000010001", b"several", "one", metadata("b", captions=["one", "", "two"])),
        **sample("000010002", b"no json", "text alone", None),
        **sample("000010003", b"json alone", None, metadata("c")),
        **sample("000010004", b"no caption", " ", {"url": "https://a.com/d.jpg"}),
        **sample("000010005", b"bad json", "text", b"{broken"),
        "000010006.txt": b"no picture",
        "000010007.png": b"a png",
        "000010007.txt": b"last",
    }
    make_tar(folder / "00000.tar", first)
    make_tar(folder / "00001.tar", second)
    (folder / "00000_stats.json").write_text("{}")
    (folder / "00000.parquet").write_bytes(b"whatever")
    return folder


def test_every_sample_is_a_pair_that_lies_in_its_tar_or_is_rejected(mirror: Path, read: Read, reasons_of: Reasons) -> None:
    rows = read("webdataset", mirror, columns=["similarity", "absent"])
    assert len(rows) == 48
    for n, row in enumerate(rows[:40]):
        assert isinstance(row, Pair)
        assert (row.url, row.captions, row.extra) == (f"https://a.com/{n:09d}.jpg", (f'caption {n} "é"',), {"similarity": 0.3})
        assert row.member is not None
        assert read_member(row.member, 10**5) == picture(n)
    assert [(row.url, row.captions, read_member(row.member, 100)) for row in rows[40:] if isinstance(row, Pair) and row.member] == [
        ("archive://cc3m-wds/00001/000010000", ("one",), b"no url"),
        ("https://a.com/b.jpg", ("one", "two"), b"several"),
        ("archive://cc3m-wds/00001/000010002", ("text alone",), b"no json"),
        ("https://a.com/c.jpg", ("of the json",), b"json alone"),
        ("archive://cc3m-wds/00001/000010007", ("last",), b"a png"),
    ]
    assert reasons_of(rows) == [(45, "no_caption"), (46, "not_json"), (47, "no_picture")]


def test_urls_and_mark_stay_the_same_when_the_folder_moves(mirror: Path, tmp_path: Path, source: Callable[..., Any]) -> None:
    moved = shutil.copytree(mirror, tmp_path / "elsewhere" / "cc3m-wds")
    here, there = source("webdataset", mirror), source("webdataset", moved)
    assert [getattr(row, "url", row) for row in here.rows()] == [getattr(row, "url", row) for row in there.rows()]
    assert here.mark() == there.mark()
    assert [name for name, _ in here.mark()["archives"]] == ["00000.tar", "00001.tar"]
    (moved / "00001.tar").write_bytes((moved / "00001.tar").read_bytes() + bytes(10_240))
    assert there.mark() != here.mark()


def test_tars_on_s3_give_the_same_rows_and_long_pictures_are_not_fetched_to_list_them(
    mirror: Path, read: Read, s3_bucket: str, make_tar: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(mirror)
    mirror.mkdir()
    members: dict[str, bytes] = {}
    for n in range(7):
        members |= sample(f"{n:09d}", bytes([n]) * (3 * WINDOW_BYTES if n == 3 else WINDOW_BYTES // 2 - 3_000), f"caption {n}", metadata(f"{n:09d}"))
    tar = Path(make_tar(mirror / "00000.tar", members))
    storage.write_bytes(f"{s3_bucket}/cc3m-wds/00000.tar", tar.read_bytes())
    fetched: list[int] = []
    read_range = storage.read_range

    def counted(path: str, start: int, end: int) -> bytes:
        data = read_range(path, start, end)
        fetched.append(len(data))
        return data

    monkeypatch.setattr(storage, "read_range", counted)
    remote, local = read("webdataset", f"{s3_bucket}/cc3m-wds"), read("webdataset", mirror)
    assert [(row.url, row.captions, row.member.offset, row.member.size) for row in remote if isinstance(row, Pair) and row.member] == [
        (row.url, row.captions, row.member.offset, row.member.size) for row in local if isinstance(row, Pair) and row.member
    ]
    assert len(remote) == 7
    assert sum(fetched) < tar.stat().st_size - 2 * WINDOW_BYTES, "the long picture was skipped, and nothing fetched twice"
    assert max(fetched) <= WINDOW_BYTES


def test_a_damaged_tar_and_a_folder_without_tars_are_named(mirror: Path, tmp_path: Path, read: Read) -> None:
    tar = mirror / "00001.tar"
    tar.write_bytes(tar.read_bytes()[:-2_000])
    with pytest.raises(DataError, match=r"00001\.tar: the tar is cut off"):
        read("webdataset", mirror)
    tar.write_bytes(b"")
    with pytest.raises(DataError, match=r"00001\.tar: the tar is cut off at byte 0"):
        read("webdataset", mirror)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: no \.tar files here"):
        read("webdataset", tmp_path / "empty")


def test_what_is_no_plain_picture_is_rejected_with_its_reason(tmp_path: Path, read: Read, reasons_of: Reasons) -> None:
    link = tarfile.TarInfo("link.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(tmp_path / "00000.tar", "w") as file:
        for member in (link, *(tarfile.TarInfo(name) for name in ("link.txt", "twice.jpg", "twice.jpg", "twice.txt"))):
            file.addfile(member)
    assert reasons_of(read("webdataset", tmp_path)) == [(1, "not_a_file"), (2, "duplicate_key")]
