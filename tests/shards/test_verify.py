"""`albef shards verify` names every difference: of the tar, of the index, of both against each other, down to the sample."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.core import storage
from shards import index, layout
from shards.verify import lost_shards, verify

from .conftest import MakeDataset

FlipByte = Callable[[str, int], None]


def lines(folder: str) -> list[str]:
    """Without the folder."""
    return [line.replace(f"{folder}/", "") for line in verify(folder)]


def test_damaged_samples_are_named_row_by_row_and_neighbours_together(make_dataset: MakeDataset, flip_byte: FlipByte) -> None:
    folder = make_dataset([9, 3]).folder
    one = index.read_index(layout.index_path(folder, "00000"))
    for row in (1, 4, 5, 6):
        flip_byte(layout.tar_path(folder, "00000"), int(one.offset[row]) + 700)
    found = lines(folder)
    assert found[0].startswith("00000.tar: sha256")
    assert found[1:] == ["00000.tar row 1: checksum differs from the index", "00000.tar rows 4 to 6 (3 samples): checksum differs from the index"]


def test_a_damaged_header_is_named_beside_its_sample(make_dataset: MakeDataset, flip_byte: FlipByte) -> None:
    folder = make_dataset([5]).folder
    offset = int(index.read_index(layout.index_path(folder, "00000")).offset[2])
    flip_byte(layout.tar_path(folder, "00000"), offset + 3)
    assert lines(folder)[1:] == [
        f"00000.tar: damaged tar header at byte {offset}; copy or download it again",
        "00000.tar row 2: checksum differs from the index",
    ]


def test_a_change_outside_the_samples_is_one(make_dataset: MakeDataset, flip_byte: FlipByte) -> None:
    folder = make_dataset([5]).folder
    path = layout.tar_path(folder, "00000")
    flip_byte(path, storage.size(path) - 1)
    assert any("more follows at byte" in line for line in lines(folder))
    assert lines(folder)[-1] == "00000.tar: changed outside its samples"


def test_a_cut_tar_names_what_is_left_and_what_is_not(make_dataset: MakeDataset) -> None:
    folder = make_dataset([5]).folder
    path = Path(layout.tar_path(folder, "00000"))
    path.write_bytes(path.read_bytes()[: int(index.read_index(layout.index_path(folder, "00000")).offset[3]) + 700])
    found = lines(folder)
    assert found[0].startswith(f"00000.tar: {path.stat().st_size} bytes, the manifest says")
    assert found[-1] == "00000.tar rows 3 to 4 (2 samples): checksum differs from the index"


def test_a_healthy_index_of_another_tar_does_not_pass(make_dataset: MakeDataset) -> None:
    """Checksums of its own, and the counts the manifest has."""
    folder = make_dataset([6, 6]).folder
    path = layout.index_path(folder, "00001")
    promised = index.read_index(path)
    captions = promised.captions.copy()
    captions[[0, 1]] = captions[[1, 0]]
    index.write_index(path, replace(promised, captions=captions))
    assert lines(folder) == ["index/00001.albef rows 0 to 1 (2 samples): not what the tar has there"]
    index.write_index(path, replace(promised, key_hash=np.roll(promised.key_hash, 1)))
    assert lines(folder) == ["index/00001.albef rows 0 to 5 (6 samples): not what the tar has there"]
    storage.write_bytes(path, storage.read_bytes(layout.index_path(folder, "00000")))
    assert "index/00001.albef" in lines(folder)[0]


def test_a_missing_index_hides_nothing_of_the_tar(make_dataset: MakeDataset, flip_byte: FlipByte) -> None:
    folder = make_dataset([4]).folder
    Path(layout.index_path(folder, "00000")).unlink()
    flip_byte(layout.tar_path(folder, "00000"), 700)
    assert [line.split(":")[0] for line in lines(folder)] == ["index/00000.albef", "00000.tar"]


def test_a_dataset_on_s3_is_verified_alike(make_dataset: MakeDataset, s3_bucket: str) -> None:
    folder = make_dataset([9, 3, 2, 2], f"{s3_bucket}/set").folder
    assert verify(folder) == []
    path = layout.tar_path(folder, "00000")
    changed = bytearray(storage.read_bytes(path))
    changed[int(index.read_index(layout.index_path(folder, "00000")).offset[4]) + 700] ^= 1
    storage.write_bytes(path, bytes(changed))
    storage.remove(layout.tar_path(folder, "00001"))
    storage.write_bytes(layout.tar_path(folder, "00003"), b"short")
    found = lines(folder)
    assert "00000.tar row 4: checksum differs from the index" in found
    assert "00001.tar: missing" in found
    assert any(line.startswith("00003.tar: 5 bytes") for line in found)
    assert not any("00002" in line for line in found)


@pytest.mark.parametrize("remote", [False, True])
def test_one_listing_finds_the_lost_shards(make_dataset: MakeDataset, s3_bucket: str, remote: bool) -> None:
    dataset = make_dataset([3, 3, 3], f"{s3_bucket}/set" if remote else None)
    assert lost_shards(dataset.folder, dataset.manifest) == []
    storage.remove(layout.tar_path(dataset.folder, "00001"))
    storage.write_bytes(layout.tar_path(dataset.folder, "00002"), b"short")
    (missing, first), (short, second) = lost_shards(dataset.folder, dataset.manifest)
    assert (missing, short) == (1, 2)
    assert first.endswith("/00001.tar: missing")
    assert "/00002.tar: 5 bytes, the manifest says" in second
