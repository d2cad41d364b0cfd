"""Written once, read by number, and every damage named."""

import contextlib
import io
import json
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core import storage
from pipeline.core.errors import DataError
from shards import index, layout, manifest, writer
from shards.dataset import DamagedSample, Dataset
from shards.foreign import index_folder, sha256_of
from shards.verify import verify

from .conftest import MakeDataset, captions_per_sample, every_index, samples


def test_the_reader_gives_the_same_samples_as_webdataset(make_dataset: MakeDataset) -> None:
    dataset = make_dataset([7, 1, 12])
    theirs = []
    for shard in dataset.manifest.shards:
        read = webdataset.WebDataset(layout.tar_path(dataset.folder, shard.name), shardshuffle=False)
        theirs += [(sample["__key__"], sample["jpg"], tuple(json.loads(sample["json"])["captions"]), sample["txt"].decode()) for sample in read]
    ours = [dataset.read(number) for number in range(dataset.num_samples)]
    assert [(one.key, one.image, one.captions, one.captions[0]) for one in ours] == theirs
    assert captions_per_sample(dataset) == [len(one.captions) for one in ours]


def test_a_foreign_tar_with_odd_members_reads_as_webdataset_reads_it(tmp_path: Path) -> None:
    long = "a-folder/" + "x" * 120
    path = tmp_path / "foreign.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as file:
        folder = tarfile.TarInfo("a-folder")
        folder.type = tarfile.DIRTYPE
        file.addfile(folder)
        for name, data in [
            ("__index__", b"skipped"), ("a-folder/1.JPG", b"one"), ("a-folder/1.txt", b"first"), (f"{long}.png", b"two"), (f"{long}.cls", b"7"),
            ("no_suffix", b"x"), ("v1.photo.final.jpg", b"key is v1"), ("v1.txt", "été".encode()), ("only.txt", b"no picture"), ("ümlaut.webp", b"three"),
            ("evil.pyd", b"cbuiltins\neval\n(S'1/0'\ntR."), ("evil.jpg", b"four"), ("evil.txt", b"  "),
        ]:  # fmt: skip
            member = tarfile.TarInfo(name)
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    published = index_folder(str(tmp_path))
    dataset = Dataset.open(str(tmp_path))
    ours = {one.key: one for one in map(dataset.read, range(dataset.num_samples))}
    raw = list(webdataset.WebDataset(str(path), shardshuffle=False))
    theirs = {sample["__key__"]: sample for sample in raw if any(suffix in sample for suffix in ("jpg", "png", "webp"))}
    assert list(ours) == [key for key in theirs if key != "v1"]  # photo.final.jpg is no suffix on our list
    assert ours["a-folder/1"].image == theirs["a-folder/1"]["jpg"]
    assert ours[long].image == theirs[long]["png"]
    assert ours["a-folder/1"].captions == ("first",)
    assert ours["evil"].captions == ()  # a blank caption is none
    assert published.outcomes == {"success": 4, "without_image": 2}


def test_the_same_samples_give_the_same_bytes_and_the_writer_s_index_is_the_walk_s(tmp_path: Path) -> None:
    first = writer.write_shard(str(tmp_path / "a" / "s.tar"), samples(0, 9), "x")
    second = writer.write_shard(str(tmp_path / "b" / "s.tar"), samples(0, 9), "x")
    assert first == second
    assert first.sha256 == sha256_of(str(tmp_path / "a" / "s.tar"))
    written = storage.read_bytes(layout.index_path(str(tmp_path / "a"), "s"))
    assert written == index.index_bytes(index.scan(str(tmp_path / "a" / "s.tar")).index)


def small_tar() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        writer.write_shard(f"{folder}/s.tar", [writer.SampleToWrite(str(n), bytes([n]) * 40, "jpg", (f"caption {n}",)) for n in range(3)])
        return Path(folder, "s.tar").read_bytes()


SMALL_TAR = small_tar()


@settings(max_examples=300, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, len(SMALL_TAR) - 1), st.integers(0, 255)), min_size=1, max_size=6), end=st.integers(0, len(SMALL_TAR)))
def test_a_mutated_tar_is_read_or_refused_but_never_crashes(changes: list[tuple[int, int]], end: int) -> None:
    data = bytearray(SMALL_TAR)
    for offset, value in changes:
        data[offset] = value
    for mutated in (bytes(data), bytes(data[:end])):
        with contextlib.suppress(DataError):
            index.index_of(memoryview(mutated), "x.tar")


def test_half_characters_and_blank_captions_survive_writing(tmp_path: Path) -> None:
    odd = writer.SampleToWrite("k", b"x", "png", ("half \ud83d done", " ", 'tab\tand "quote'), {"alt": "\udc00"})
    entry = writer.write_shard(str(tmp_path / "s.tar"), [odd])
    manifest.publish(str(tmp_path), [entry], {}, {})
    assert Dataset.open(str(tmp_path)).read(0).captions == ("half ? done", 'tab\tand "quote')
    assert entry.captions == 2


@pytest.mark.parametrize("cut", [1, 512, 700, 5000])
def test_a_truncated_tar_is_named_in_one_line(tmp_path: Path, cut: int) -> None:
    writer.write_shard(str(tmp_path / "00000.tar"), samples(0, 5))
    whole = (tmp_path / "00000.tar").read_bytes()
    end = max(offset for offset in range(0, len(whole), 512) if whole[offset : offset + 512].strip(b"\0")) + 512
    (tmp_path / "00000.tar").write_bytes(whole[: end - cut + 512 * (cut == 512)])  # 512: cut exactly at the end mark, where Python's tarfile sees nothing
    with pytest.raises(DataError, match=r"^[^\n]*00000\.tar: the tar is cut off at byte \d+[^\n]*$"):
        index.scan(str(tmp_path / "00000.tar"))


def test_a_damaged_header_is_an_error_where_tarfile_sees_the_end(tmp_path: Path, flip_byte: Callable[[str, int], None]) -> None:
    path = str(tmp_path / "00000.tar")
    writer.write_shard(path, samples(0, 5))
    start = int(index.scan(path).index.offset[2])
    flip_byte(path, start + 3)
    with tarfile.open(path) as file:
        assert len(file.getnames()) < 15  # silently less
    with pytest.raises(DataError, match=rf"00000\.tar: damaged tar header at byte {start}"):
        index.scan(path)
    with pytest.raises(DataError, match=r"00000\.tar"):
        index_folder(str(tmp_path))
    assert not (tmp_path / "MANIFEST").exists()


def test_a_flipped_byte_damages_one_sample_and_no_other(make_dataset: MakeDataset, flip_byte: Callable[[str, int], None]) -> None:
    dataset = make_dataset([6, 6])
    path = layout.tar_path(dataset.folder, "00001")
    one = index.scan(path).index
    flip_byte(path, int(one.offset[2]) + 700)
    reopened = Dataset.open(dataset.folder)
    with pytest.raises(DamagedSample, match=r"00001\.tar row 2: checksum") as raised:
        reopened.read(8)
    assert raised.value.key == "000010002"
    assert [reopened.read(number).key for number in range(12) if number != 8] == [dataset.read(number).key for number in range(12) if number != 8]
    differences = verify(dataset.folder)
    assert len(differences) == 2
    assert "sha256" in differences[0]
    assert differences[1].endswith("00001.tar row 2: checksum differs from the index")


def test_a_shard_of_another_size_is_refused_when_asked_and_when_first_read(make_dataset: MakeDataset) -> None:
    dataset = make_dataset([3, 3])
    with Path(layout.tar_path(dataset.folder, "00001")).open("ab") as file:
        file.write(b"more")
    with pytest.raises(DataError, match=r"^[^\n]*00001\.tar: \d+ bytes, the manifest says \d+[^\n]*$"):
        every_index(Dataset.open(dataset.folder))
    reopened = Dataset.open(dataset.folder)
    assert reopened.read(2).key == dataset.read(2).key
    with pytest.raises(DataError, match=r"00001\.tar"):
        reopened.read(3)
    assert any("00001.tar" in line for line in verify(dataset.folder))


def test_a_missing_shard_and_a_missing_or_damaged_index_are_named(make_dataset: MakeDataset, flip_byte: Callable[[str, int], None]) -> None:
    dataset = make_dataset([3, 3])
    flip_byte(layout.index_path(dataset.folder, "00000"), 60)
    with pytest.raises(DataError, match=r"00000\.albef: the index is damaged"):
        every_index(Dataset.open(dataset.folder))
    Path(layout.index_path(dataset.folder, "00000")).unlink()
    with pytest.raises(DataError, match=r"00000\.albef: no index"):
        every_index(Dataset.open(dataset.folder))
    Path(layout.tar_path(dataset.folder, "00000")).unlink()
    with pytest.raises(DataError, match=r"00000\.tar: not found"):
        every_index(Dataset.open(dataset.folder))
    assert [line.rsplit("/", 1)[-1] for line in verify(dataset.folder)] == ["00000.albef: no index; make it with `albef shards index`", "00000.tar: missing"]


def test_manifests_are_numbered_never_changed_and_only_new_content_makes_a_new_one(make_dataset: MakeDataset) -> None:
    dataset = make_dataset([2, 2])
    first = dataset.manifest
    again = manifest.publish(dataset.folder, reversed(first.shards), first.outcomes, first.config)
    assert again == first
    second = manifest.publish(dataset.folder, first.shards[:1], {}, {})
    assert (first.number, second.number) == (1, 2)
    assert Dataset.open(dataset.folder).num_samples == 2
    assert Dataset.open(dataset.folder, manifest=1).fingerprint == first.fingerprint
    Path(layout.newest_path(dataset.folder)).write_text("1\n")  # as if the second publisher had died before its last write
    third = manifest.publish(dataset.folder, first.shards[:1], {}, {})
    assert third.number == 3
    with pytest.raises(DataError, match=r"00009\.json: no such manifest; the newest of .* is 3"):
        Dataset.open(dataset.folder, manifest=9)


def test_a_folder_without_a_manifest_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="albef shards index"):
        Dataset.open(str(tmp_path))
    with pytest.raises(DataError, match=r"no \.tar files"):
        index_folder(str(tmp_path))


def test_a_manifest_cannot_name_a_shard_outside_its_folder(make_dataset: MakeDataset) -> None:
    dataset = make_dataset([2])
    path = Path(layout.manifest_path(dataset.folder, 1))
    path.write_text(path.read_text().replace('"00000"', '"../00000"'))
    with pytest.raises(DataError, match="expected a plain file name"):
        Dataset.open(dataset.folder)


def test_a_manifest_that_counts_other_captioned_samples_than_the_index_is_refused_by_name(make_dataset: MakeDataset) -> None:
    dataset = make_dataset([4, 3])
    path = Path(layout.manifest_path(dataset.folder, 1))
    path.write_text(path.read_text().replace('"captioned": 3', '"captioned": 8'))
    assert Dataset.open(dataset.folder).read(3).key == dataset.read(3).key
    with pytest.raises(
        DataError,
        match=r"^[^\n]*00001\.albef: indexes 3 samples, 3 of them captioned[^\n]*the manifest says 3 samples, 8 of them[^\n]*`albef shards index`[^\n]*$",
    ):
        Dataset.open(dataset.folder).read(4)


def test_a_read_only_dataset_keeps_its_index_elsewhere(make_dataset: MakeDataset, tmp_path: Path) -> None:
    dataset = make_dataset([4])
    index_folder(dataset.folder, index_root=str(tmp_path / "elsewhere"))
    assert Dataset.open(dataset.folder, index_root=str(tmp_path / "elsewhere")).read(3).key == dataset.read(3).key


def test_a_sample_with_a_damaged_json_is_damaged_and_its_neighbours_are_not(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as file:
        for name, data in [("1.jpg", b"a"), ("1.txt", b"one"), ("1.json", b"{broken"), ("2.jpg", b"b"), ("2.txt", b"two"), ("2.json", b"[" * 100_000)]:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    index_folder(str(tmp_path))
    dataset = Dataset.open(str(tmp_path))
    assert captions_per_sample(dataset) == [1, 1]
    for sample in (0, 1):
        with pytest.raises(DamagedSample, match="is not valid JSON"):
            dataset.read(sample)


@pytest.mark.parametrize(("key", "extension"), [("", "jpg"), ("a.b", "jpg"), ("/abs", "jpg"), ("ok", "pyd"), ("k" * 300, "jpg")])
def test_what_cannot_name_a_sample_is_refused(tmp_path: Path, key: str, extension: str) -> None:
    with pytest.raises(DataError):
        writer.write_shard(str(tmp_path / "s.tar"), [writer.SampleToWrite(key, b"x", extension, ("c",))])
    assert list(tmp_path.iterdir()) == []


def test_a_dataset_is_written_to_s3_and_read_from_it(make_dataset: MakeDataset, s3_bucket: str) -> None:
    remote, local = make_dataset([5, 4], f"{s3_bucket}/set"), make_dataset([5, 4])
    assert remote.fingerprint == local.fingerprint
    assert [remote.read(number) for number in (8, 0, 5)] == [local.read(number) for number in (8, 0, 5)]
    assert verify(remote.folder) == []
    assert index_folder(remote.folder).num_samples == 9
    storage.remove(layout.tar_path(remote.folder, "00001"))
    with pytest.raises(DataError, match=r"00001\.tar"):
        every_index(Dataset.open(remote.folder))


def test_indexes_are_small(make_dataset: MakeDataset) -> None:
    dataset = make_dataset([50])
    assert storage.size(layout.index_path(dataset.folder, "00000")) <= 30 * 50 + 64
    assert np.unique(dataset.indexes(0).key_hash).size == 50


@pytest.mark.parametrize(
    ("field", "value"), [("samples", "3"), ("bytes", None), ("captions", -1), ("samples", True), ("captioned", 1.5), ("sha256", 7), ("source", None)]
)
def test_a_manifest_with_something_else_in_place_of_a_count_or_a_text_is_refused_in_one_line(make_dataset: MakeDataset, field: str, value: object) -> None:
    folder = make_dataset([3]).folder
    path = Path(layout.manifest_path(folder, 1))
    record = json.loads(path.read_text())
    record["shards"][0][field] = value
    path.write_text(json.dumps(record))
    with pytest.raises(DataError, match=rf"^[^\n]*not a manifest this albef can read [^\n]*{field} {value!r} is no (count|text)"):
        Dataset.open(folder)
