"""Pictures are read out of zips and tars where they lie, and every byte is checked."""

import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ingest.archives import ENCRYPTED, LOCAL_HEADER, NAME_BYTES, NOT_IN_ARCHIVE, UNKNOWN_COMPRESSION, Archives, read_member
from ingest.outcomes import Ended, Outcome
from ingest.pair import Member
from pipeline.core import storage
from pipeline.core.errors import DataError

LIMIT = 10**6
NOISE = np.random.default_rng(0).bytes(20_000)
PICTURES = {"train/a.jpg": NOISE, "train/b.jpg": b"b" * 5_000, "train/sub folder/é.jpg": b"", "top.jpg": b"top"}


def write_zip(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED, **options: Any) -> str:
    with zipfile.ZipFile(path, "w", method, **options) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return str(path)


def found(archives: Archives, name: str) -> Member:
    member = archives.find(name)
    assert isinstance(member, Member), member
    return member


def counted_reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Grows by (path, bytes) with every ranged read."""
    reads: list[tuple[str, int]] = []
    read_range = storage.read_range

    def counted(path: str, start: int, end: int) -> bytes:
        data = read_range(path, start, end)
        reads.append((path, len(data)))
        return data

    monkeypatch.setattr(storage, "read_range", counted)
    return reads


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zips_pictures_come_out_as_they_went_in_one_read_each(method: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archives = Archives([write_zip(tmp_path / "a.zip", PICTURES, method)])
    reads = counted_reads(monkeypatch)
    assert {name: read_member(found(archives, name), LIMIT) for name in PICTURES} == PICTURES
    assert len(reads) == len(PICTURES)


def test_zip_and_tar_on_s3_are_read_where_they_lie(tmp_path: Path, s3_bucket: str) -> None:
    write_zip(tmp_path / "a.zip", {**PICTURES, "padding": bytes(2**20)}, zipfile.ZIP_DEFLATED)
    with tarfile.open(tmp_path / "b.tar", "w") as archive:
        for name, data in PICTURES.items():
            info = tarfile.TarInfo(f"b/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    for name in ("a.zip", "b.tar"):
        storage.write_bytes(f"{s3_bucket}/{name}", (tmp_path / name).read_bytes())
        archives = Archives([f"{s3_bucket}/{name}"])
        assert {name: read_member(found(archives, name), LIMIT) for name in PICTURES} == PICTURES


def test_the_local_header_may_be_longer_than_the_central_one_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writers put timestamps or padding for alignment into the local extra field alone."""
    path = write_zip(tmp_path / "a.zip", {"x": b""})
    name, data = b"a.jpg", b"the picture"
    for extra_bytes in (0, 20, 2 * NAME_BYTES):
        extra = struct.pack("<HH", 0xCAFE, extra_bytes) + bytes(extra_bytes) if extra_bytes else b""
        local = struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 0, 0, 0, zlib.crc32(data), len(data), len(data), len(name), len(extra)) + name + extra + data
        central = struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 0, 0, 0, zlib.crc32(data), len(data), len(data), len(name), 0, 0, 0, 0, 0, 0) + name
        end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 1, 1, len(central), len(local), 0)
        Path(path).write_bytes(local + central + end)
        reads = counted_reads(monkeypatch)
        assert read_member(found(Archives([path]), "a.jpg"), LIMIT) == data
        assert len(reads) == (2 if extra_bytes > NAME_BYTES else 1)


def test_a_zip64_with_bytes_in_front_and_streamed_members_is_read(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in PICTURES.items():
            with archive.open(name, "w", force_zip64=True) as member:
                member.write(data)
    (tmp_path / "a.zip").write_bytes(b"#!/bin/sh\n" * 100 + stream.getvalue())
    archives = Archives([str(tmp_path / "a.zip")])
    assert {name: read_member(found(archives, name), LIMIT) for name in PICTURES} == PICTURES


def test_a_member_behind_the_fourth_gigabyte_is_found(tmp_path: Path) -> None:
    path = tmp_path / "large.zip"
    with path.open("wb") as file:
        file.truncate(2**32 + 1_000)  # a hole, which takes no room on disk
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("behind.jpg", NOISE)
    member = found(Archives([str(path)]), "behind.jpg")
    assert member.offset > 2**32
    assert read_member(member, LIMIT) == NOISE


def test_a_picture_is_found_by_the_end_of_its_path_and_the_first_archive_wins(tmp_path: Path) -> None:
    first = write_zip(tmp_path / "first.zip", {"one/a.jpg": b"1a", "two/a.jpg": b"2a", "b.jpg": b"b"})
    second = write_zip(tmp_path / "second.zip", {"two/a.jpg": b"another", "deep/er/c.jpg": b"c"})
    archives = Archives([first, second])
    for name, data in {"one/a.jpg": b"1a", "two/a.jpg": b"2a", "x/two/a.jpg": b"2a", "a.jpg": b"1a", "x/b.jpg": b"b", "er/c.jpg": b"c"}.items():
        assert read_member(found(archives, name), LIMIT) == data, name
    assert archives.find("d.jpg") == NOT_IN_ARCHIVE


def test_encrypted_members_and_other_compressions_are_named_as_such(tmp_path: Path) -> None:
    path = Path(write_zip(tmp_path / "a.zip", {"secret.jpg": b"secret", "plain.jpg": b"plain"}))
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1  # flag bit 0 of the first member
    path.write_bytes(data)
    bzipped = write_zip(tmp_path / "b.zip", {"small.jpg": b"small" * 100}, zipfile.ZIP_BZIP2)
    archives = Archives([str(path), bzipped])
    assert archives.find("secret.jpg") == ENCRYPTED
    assert archives.find("small.jpg") == UNKNOWN_COMPRESSION
    assert read_member(found(archives, "plain.jpg"), LIMIT) == b"plain"


def refused(member: Member, max_bytes: int = LIMIT) -> Ended:
    with pytest.raises(Ended) as caught:
        read_member(member, max_bytes)
    return caught.value


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_any_flipped_byte_of_a_zips_picture_is_noticed(method: int, tmp_path: Path) -> None:
    path = Path(write_zip(tmp_path / "a.zip", {"a.jpg": NOISE[:2_000]}, method))
    whole = path.read_bytes()
    member = found(Archives([str(path)]), "a.jpg")
    start = LOCAL_HEADER.size + len("a.jpg")
    for position in range(start, start + member.size, 37):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
        assert refused(member).outcome == Outcome.DAMAGED_MEMBER
    path.write_bytes(b"XX" + whole[2:])
    assert "has no local header" in refused(member).detail
    path.write_bytes(whole[:500])
    assert "is cut off" in refused(member).detail
    path.unlink()
    with pytest.raises(DataError, match=r"a\.zip: not found"):
        read_member(member, LIMIT)


def test_a_picture_that_inflates_beyond_the_limit_is_refused_before_it_does(tmp_path: Path) -> None:
    archives = Archives([write_zip(tmp_path / "a.zip", {"bomb.jpg": bytes(50 * 2**20), "fits.jpg": bytes(2**20)}, zipfile.ZIP_DEFLATED)])
    assert refused(found(archives, "bomb.jpg"), 2**20).outcome == Outcome.TOO_LARGE
    assert len(read_member(found(archives, "fits.jpg"), 2**20)) == 2**20
    stored = Archives([write_zip(tmp_path / "b.zip", {"large.jpg": bytes(2**20 + 1)})])
    assert refused(found(stored, "large.jpg"), 2**20).outcome == Outcome.TOO_LARGE


def test_a_cut_tar_member_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"x" * 600)
    assert refused(Member(str(tmp_path / "a.tar"), 512, 100)).outcome == Outcome.DAMAGED_MEMBER


@pytest.mark.parametrize("damage", [lambda data: data[:-30], lambda data: b"not a zip at all", lambda data: b"", lambda data: data[:-70] + bytes(70)])
def test_what_is_no_whole_zip_is_named(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = Path(write_zip(tmp_path / "a.zip", PICTURES))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"a\.zip: not a whole zip file .*copy or download it again") as caught:
        Archives([str(path)])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["pictures.tar.gz", "pictures.rar", "pictures"])
def test_an_archive_that_allows_no_ranged_reads_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DataError, match=r"not an archive pictures can be read from; give a \.zip"):
        Archives([str(tmp_path / name)])
