"""Karpathy's files: chosen splits, all sentences, the ids by which pictures are known elsewhere."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ingest.archives import read_member
from ingest.pair import Pair, RejectedRow, Row
from pipeline.core.errors import DataError

Read = Callable[..., list[Row]]


def sentences(number: int) -> list[dict[str, Any]]:
    raw = [f'Picture {number}, caption {n}: a "man"\twith a {"red" * n} helmet.' for n in range(5)]
    return [{"tokens": text.lower().split(), "raw": text, "imgid": number, "sentid": 5 * number + n} for n, text in enumerate(raw)]


def coco_entry(number: int, split: str) -> dict[str, Any]:
    folder = "train2014" if split == "train" else "val2014"
    entry = {"filepath": folder, "filename": f"COCO_{folder}_{number:012d}.jpg", "cocoid": number, "imgid": number, "split": split}
    return {**entry, "sentids": [5 * number + n for n in range(5)], "sentences": sentences(number)}


def captions(number: int) -> tuple[str, ...]:
    return tuple(sentence["raw"] for sentence in sentences(number))


SPLITS = ["train", "test", "restval", "val", "train", "restval"]


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    entries = [coco_entry(number, split) for number, split in enumerate(SPLITS, start=391895)]
    entries[-1]["sentences"] = []
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": entries, "dataset": "coco"}))
    return tmp_path / "dataset_coco.json"


def test_train_and_restval_are_taken_in_the_files_order_unless_others_are_chosen(coco: Path, read: Read) -> None:
    rows = read("karpathy", coco)
    url = "http://images.cocodataset.org/{0}/COCO_{0}_{1:012d}.jpg"
    assert rows == [
        Pair(url.format("train2014", 391895), captions(391895), {"coco_id": 391895}),
        Pair(url.format("val2014", 391897), captions(391897), {"coco_id": 391897}),
        Pair(url.format("train2014", 391899), captions(391899), {"coco_id": 391899}),
        RejectedRow(4, "no_caption", url.format("val2014", 391900)),
    ]
    assert [row.extra["coco_id"] for row in read("karpathy", coco, splits=["val", "test"]) if isinstance(row, Pair)] == [391896, 391898]
    assert read("karpathy", coco, splits=["val"], url_prefix="https://mirror.org/coco/")[0].url.startswith("https://mirror.org/coco/val2014/")


def test_pictures_are_found_in_both_zips(coco: Path, tmp_path: Path, read: Read, make_zip: Callable[..., str]) -> None:
    zips = []
    for folder in ("val2014", "train2014"):
        members = {f"{folder}/COCO_{folder}_{n:012d}.jpg": b"%d" % n for n in range(391895, 391899)}
        zips.append(make_zip(tmp_path / f"{folder}.zip", members))
    rows = read("karpathy", coco, archives=zips)
    assert [read_member(row.member, 100) for row in rows if isinstance(row, Pair) and row.member] == [b"391895", b"391897"]
    assert [(row.row, row.reason) for row in rows if isinstance(row, RejectedRow)] == [(3, "not_in_archive"), (4, "not_in_archive")]


def test_flickr30k_has_the_flickr_id_and_a_url_of_its_own_that_does_not_depend_on_the_place(tmp_path: Path, read: Read, make_tar: Callable[..., str]) -> None:
    entry = {"filename": "1000092795.jpg", "imgid": 0, "split": "train", "sentids": [0, 1, 2, 3, 4], "sentences": sentences(0)}
    (tmp_path / "dataset_flickr30k.json").write_text(json.dumps({"images": [entry], "dataset": "flickr30k"}))
    archive = make_tar(tmp_path / "pictures.tar", {"flickr30k-images/1000092795.jpg": b"a jpeg"})
    (row,) = read("karpathy", tmp_path / "dataset_flickr30k.json", splits=["train"], archives=[archive])
    assert isinstance(row, Pair)
    assert (row.url, row.captions, row.extra) == ("archive://dataset_flickr30k/1000092795.jpg", captions(0), {"flickr_id": 1000092795})
    assert row.member is not None
    assert read_member(row.member, 100) == b"a jpeg"


def test_a_split_that_is_not_there_is_named_with_those_there_are(tmp_path: Path, read: Read, source: Callable[..., Any]) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps({"images": [coco_entry(1, "train")]}))
    with pytest.raises(DataError, match="no image of split 'restval'; it has train"):
        read("karpathy", tmp_path / "dataset.json")
    with pytest.raises(ValueError, match="train"):
        source("karpathy", "dataset.json", splits=["dev"])
    (tmp_path / "dataset.json").write_text(json.dumps({"images": [{"filename": "a.jpg"}]}))
    with pytest.raises(DataError, match=r"dataset\.json: not a Karpathy caption file"):
        read("karpathy", tmp_path / "dataset.json")
