"""A stranger's tar: nothing in it is executed, nothing is written outside, and what it asks for is bounded in memory and time."""

import contextlib
import io
import json
import os
import pickle
import resource
import struct
import subprocess
import sys
import tarfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import webdataset

from pipeline.core.errors import DataError
from shards import index, tar
from shards.dataset import DamagedSample, Dataset
from shards.foreign import index_folder
from shards.pixels.decode import decode_image
from shards.verify import verify

from .conftest import captions_per_sample, picture

JPEG = simplejpeg.encode_jpeg(picture(1))


def member(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, size: int | None = None, **fields: object) -> bytes:
    """One member as a tar holds it; `size` may lie."""
    info = tarfile.TarInfo(name)
    info.size, info.type = len(data) if size is None else size, kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % tar.BLOCK)


def sample(key: str, image: bytes = JPEG, caption: str = "a caption") -> bytes:
    return member(f"{key}.jpg", image) + member(f"{key}.txt", caption.encode())


END = bytes(2 * tar.BLOCK)


def indexed(folder: Path, data: bytes) -> Dataset:
    folder.mkdir(exist_ok=True)
    (folder / "x.tar").write_bytes(data)
    index_folder(str(folder))
    return Dataset.open(str(folder))


def keys_of(dataset: Dataset) -> list[str]:
    return [dataset.read(number).key for number in range(dataset.num_samples)]


class Payload:
    """Unpickled, it writes a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.canary}",)


def npy(payload: Payload) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([payload], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def test_no_payload_is_ever_unpickled_where_webdataset_runs_it(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    payload = pickle.dumps(Payload(canary))
    forms = {"pyd": payload, "pkl": payload, "pickle": payload, "pth": payload, "npy": npy(Payload(canary)), "json": payload, "txt": payload}
    data = b"".join(
        sample(f"s{suffix}") + member(f"s{suffix}.{suffix}0", b"x") + member(f"s{suffix}.{suffix}", body) for suffix, body in forms.items() if suffix != "txt"
    )
    data += member("stxt.jpg", JPEG) + member("stxt.txt", payload) + member("p.jpg", payload) + member("p.txt", b"a pickle posing as a picture")
    dataset = indexed(tmp_path / "set", data + END)
    for number in range(dataset.num_samples):
        with contextlib.suppress(DataError):
            decode_image(dataset.read(number).image)
    assert verify(dataset.folder) == []
    assert not canary.exists()
    list(webdataset.WebDataset(str(tmp_path / "set" / "x.tar"), shardshuffle=False).decode("pil", handler=webdataset.handlers.ignore_and_continue))
    assert canary.exists()  # the payload is a real one


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("../../etc/evil", "%2E%2E/%2E%2E/etc/evil"),
        ("/etc/evil", "%2Fetc/evil"),
        ("//etc/evil", "%2F/etc/evil"),
        ("a/../../evil", "a/%2E%2E/%2E%2E/evil"),
        ("..", None),
        ("a\\b", "a%5Cb"),
        ("line\nbreak", "line%0Abreak"),
        ("\x1b[31mred", "%1B[31mred"),
        ("right\u202eleft", "right%E2%80%AEleft"),
        ("nul\x00.jpg", None),
        ("./a", "./a"),
        ("a/b/c", "a/b/c"),
        ("é と", "é と"),
        ("k" * 5000, None),
    ],
)
def test_a_key_is_never_a_way_out(tmp_path: Path, name: str, key: str | None) -> None:
    data = member(f"{name}.jpg", JPEG) + member(f"{name}.txt", b"caption")
    dataset = indexed(tmp_path / "set", data + END)
    keys = keys_of(dataset)
    for found in keys:
        assert (tmp_path / "out" / found).resolve().is_relative_to(tmp_path / "out")
        assert found.isprintable()
        assert len(found) <= tar.MAX_KEY_CHARACTERS
    if key is not None:
        assert keys == [key]


def test_names_cut_alike_stay_different_keys(tmp_path: Path) -> None:
    long = "k" * 3000
    dataset = indexed(tmp_path / "set", sample(long + "a") + sample(long + "b") + END)
    assert len(set(keys_of(dataset))) == 2


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"Z"])
def test_links_and_devices_are_no_pictures_and_counted(tmp_path: Path, kind: bytes) -> None:
    odd = member("evil.jpg", kind=kind, linkname="/etc/passwd") + member("evil.txt", b"caption")
    folder = member("folder.jpg/", kind=tarfile.DIRTYPE)
    dataset = indexed(tmp_path / "set", sample("a") + odd + folder + sample("b") + END)
    assert keys_of(dataset) == ["a", "b"]
    assert dataset.manifest.outcomes == {"success": 2, "without_image": 0, "not_a_file": 1}


def test_a_hard_link_with_a_size_hides_nothing(tmp_path: Path) -> None:
    """Some writers give a hard link the size of its target; tarfile knows that no data follow."""
    data = sample("a") + member("link.bin", kind=tarfile.LNKTYPE, size=2048, linkname="a.jpg") + sample("b") + END
    dataset = indexed(tmp_path / "set", data)
    assert keys_of(dataset) == ["a", "b"] == [found["__key__"] for found in webdataset.WebDataset(str(tmp_path / "set" / "x.tar"), shardshuffle=False)]


def test_sparse_files_are_refused_and_what_follows_is_found(tmp_path: Path) -> None:
    """GNU's old sparse header with two more blocks of map, and the three ways in pax."""
    header = bytearray(member("old.jpg", kind=tarfile.GNUTYPE_SPARSE, size=512))
    header[482] = 1
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    old = bytes(header) + bytes(504) + b"\1" + bytes(7) + bytes(512) + b"d" * 512
    pax = tarfile.TarInfo("GNUSparseFile.0/new.jpg")
    pax.size, pax.pax_headers = 512, {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "new.jpg", "GNU.sparse.realsize": "10000000000"}
    new = pax.tobuf(tarfile.PAX_FORMAT) + b"0\n".ljust(512, b"\0")
    dataset = indexed(tmp_path / "set", sample("a") + old + sample("b") + new + sample("c") + END)
    assert keys_of(dataset) == ["a", "b", "c"]
    assert dataset.manifest.outcomes["sparse"] == 2


@pytest.mark.parametrize("size", [10 * 2**30, 8 * 2**40])
def test_a_header_of_ten_gigabytes_in_a_small_tar_is_a_cut(tmp_path: Path, size: int) -> None:
    for data in (sample("a") + member("b.jpg", JPEG, size=size) + END, sample("a") + member("b", kind=tarfile.GNUTYPE_LONGNAME, size=size) + END):
        with pytest.raises(DataError, match=r"^[^\n]*x\.tar: the tar is cut off at byte \d+[^\n]*$"):
            indexed(tmp_path / "set", data)


def test_bounds_are_on_members_and_on_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sparse file of the system stands for gigabytes on disk: only headers are looked at."""
    sizes = {"a.jpg": tar.MAX_IMAGE_BYTES + 1, "b.jpg": 1, "b.json": tar.MAX_TEXT_BYTES + 1, "c.jpg": 1, "c.mp4": tar.MAX_SAMPLE_BYTES, "d.jpg": 1, "d.txt": 1}
    end = sum(tar.BLOCK + -(-size // tar.BLOCK) * tar.BLOCK for size in sizes.values()) + len(END)

    class Sparse:
        """Headers where they lie, zeros elsewhere."""

        def __init__(self) -> None:
            self.headers, position = {}, 0
            for name, size in sizes.items():
                self.headers[position] = member(name, size=size)
                position += tar.BLOCK + -(-size // tar.BLOCK) * tar.BLOCK

        def __len__(self) -> int:
            return end

        def __getitem__(self, key: slice) -> bytes:
            return self.headers.get(key.start, bytes(key.stop - key.start))

    found = {group.key: group.refused for group in tar.groups(Sparse(), "x.tar")}
    assert found == {"a": tar.TOO_LARGE, "b": tar.TOO_LARGE, "c": tar.TOO_LARGE, "d": None}


def pax_header(*records: bytes, kind: bytes = b"x") -> bytes:
    return member("pax", b"".join(records), kind=kind)


def record(keyword: bytes, value: bytes) -> bytes:
    body = b" " + keyword + b"=" + value + b"\n"
    length = len(body)
    while len(str(length)) + len(body) != length:
        length = len(str(length)) + len(body)
    return str(length).encode() + body


def test_a_pax_value_cannot_pose_as_a_record(tmp_path: Path) -> None:
    honest = pax_header(record(b"comment", b"x\n17 path=evil.jpg\n"), record(b"path", b"good.jpg")) + member("short", JPEG)
    dataset = indexed(tmp_path / "set", honest + END)
    assert keys_of(dataset) == ["good"]
    with tarfile.open(tmp_path / "set" / "x.tar") as file:
        assert file.getnames() == ["good.jpg"]


@pytest.mark.parametrize(
    "header",
    [
        pax_header(record(b"path", b"a" * 2**17 + b".jpg")),
        member("long", b"a" * 2**17, kind=tarfile.GNUTYPE_LONGNAME),
        pax_header(b"99999999 path=a.jpg\n"),
        pax_header(b"11 path=a.jpg\n"),
        pax_header(b"-5 path=a.jpg\n"),
        pax_header(b" path=a.jpg\n"),
        pax_header(record(b"size", b"-1")),
        pax_header(record(b"size", b"9" * 60)),
        pax_header(record(b"path", b"a.jpg"), kind=b"g"),
    ],
)
def test_a_hostile_extension_header_is_refused_in_one_line(tmp_path: Path, header: bytes) -> None:
    with pytest.raises(DataError, match=r"^[^\n]*x\.tar: [^\n]*$"):
        indexed(tmp_path / "set", sample("ok") + header + member("short", JPEG) + END)


def test_global_comments_as_git_writes_them_do_no_harm(tmp_path: Path) -> None:
    assert keys_of(indexed(tmp_path / "set", pax_header(record(b"comment", b"0" * 40), kind=b"g") + sample("a") + END)) == ["a"]


@pytest.mark.parametrize(
    "body",
    [b"[" * 900 + b"]" * 900, b'{"a":' * 500 + b"1" + b"}" * 500, b"[" * 10**6, b"9" * 10**6, b'"' * 10**6, b'"\\"' * 10**6, b"\xff\xfe"],
    ids=["deep list", "deep dict", "open brackets", "huge number", "quotes", "escaped quotes", "not utf-8"],
)
def test_hostile_json_costs_its_sample_at_most_and_little_time(tmp_path: Path, body: bytes) -> None:
    started = time.monotonic()
    dataset = indexed(tmp_path / "set", sample("a") + member("a.json", body) + sample("b") + END)
    with pytest.raises(DamagedSample, match=r"^[^\n]{0,300}a\.json is not valid JSON[^\n]{0,100}$"):
        dataset.read(0)
    assert dataset.read(1).key == "b"
    assert time.monotonic() - started < 10


def png_bomb(side: int) -> bytes:
    """A few kilobytes that say they are side x side black pixels."""
    chunks = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(2**20), 9)), (b"IEND", b"")):
        chunks += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return chunks


def test_a_decompression_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    dataset = indexed(tmp_path / "set", member("a.png", png_bomb(60_000)) + member("a.txt", b"x") + END)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=r"pixels"):
        decode_image(dataset.read(0).image)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # kilobytes


INDEXING = "import resource, sys; from shards.index import scan; print(len(scan(sys.argv[1]).index), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"


def test_indexing_a_large_tar_takes_little_memory(tmp_path: Path) -> None:
    small, large = tmp_path / "small.tar", tmp_path / "large.tar"
    small.write_bytes(sample("0") + END)
    with large.open("wb") as file:
        for number in range(100):
            file.write(sample(str(number), JPEG + bytes(4 * 2**20)))
        file.write(END)
    found = [subprocess.run([sys.executable, "-c", INDEXING, str(path)], capture_output=True, text=True, check=True).stdout.split() for path in (small, large)]
    assert [int(samples) for samples, _ in found] == [1, 100]
    assert int(found[1][1]) - int(found[0][1]) < 150 * 1024  # kilobytes; the tar has 400 MiB


def test_concatenated_tars_and_holes_are_named(tmp_path: Path) -> None:
    for data in (sample("a") + END + sample("b") + END, sample("a") + bytes(512) + sample("b") + END):
        with pytest.raises(DataError, match=r"x\.tar: zeros at byte \d+ end the tar, but more follows at byte \d+"):
            indexed(tmp_path / "set", data)


def test_an_index_that_points_outside_its_tar_is_refused(tmp_path: Path) -> None:
    found = index.from_rows([index.Row("a", 2**63, 1024, 1, 0)], 4096)
    index.write_index(str(tmp_path / "x.albef"), found)
    with pytest.raises(DataError, match="points outside its tar"):
        index.read_index(str(tmp_path / "x.albef"))


def test_a_stranger_s_json_is_data(tmp_path: Path) -> None:
    odd = json.dumps({"captions": ["ok", 5, None, {"a": 1}, "  "], "__class__": "os.system"}).encode()
    dataset = indexed(tmp_path / "set", member("a.jpg", JPEG) + member("a.json", odd) + END)
    assert dataset.read(0).captions == ("ok",)
    assert captions_per_sample(dataset) == [1]


def test_half_a_character_in_a_caption_reads_as_a_question_mark_and_can_be_encoded(tmp_path: Path) -> None:
    captions = json.dumps({"captions": ["a dog \ud83d", "\udc00", "two dogs \U0001f436"]}).encode()
    assert b'ud83d"' in captions
    dataset = indexed(tmp_path / "set", member("a.jpg", JPEG) + member("a.json", captions) + END)
    assert dataset.read(0).captions == ("a dog ?", "?", "two dogs \U0001f436")
    assert "".join(dataset.read(0).captions).encode().decode() == "a dog ??two dogs \U0001f436"
    assert dataset.manifest.shards[0].captions == 3
