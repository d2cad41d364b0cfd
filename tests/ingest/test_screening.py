"""What must not come in does not: block lists and benchmark pictures, by address, id, bytes and looks."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ingest import ingest, phash_corpus, published, purge, screening
from ingest.config import IngestConfig
from ingest.outcomes import Ended
from ingest.screening import ids_of
from pipeline.core import parquet
from pipeline.core.errors import DataError
from shards.dataset import Dataset


def karpathy(tmp_path: Path) -> list[str]:
    sentences = [{"raw": "a dog"}]
    coco = [
        {"filepath": "val2014", "filename": f"COCO_val2014_{n:012d}.jpg", "cocoid": n, "split": split, "sentences": sentences}
        for n, split in ((42, "val"), (43, "test"), (44, "restval"), (45, "train"))
    ]
    flickr = [
        {"filename": f"{n}.jpg", "imgid": n % 10, "split": split, "sentences": sentences} for n, split in ((1001, "val"), (1002, "test"), (1003, "train"))
    ]
    for name, images in (("coco", coco), ("flickr30k", flickr)):
        (tmp_path / f"dataset_{name}.json").write_text(json.dumps({"images": images}))
    return [str(tmp_path / "dataset_coco.json"), str(tmp_path / "dataset_flickr30k.json")]


def make(tmp_path: Path, rows: list[dict[str, Any]], **settings: Any) -> IngestConfig:
    (tmp_path / "list.jsonl").write_text("".join(json.dumps({"caption": "x", **row}) + "\n" for row in rows))
    source = {"type": "jsonl", "path": str(tmp_path / "list.jsonl"), "columns": ["coco_id"]}
    values: dict[str, Any] = {"sources": [source], "output": str(tmp_path / "set"), "samples_per_shard": 20}
    values |= {"fetch": {"allow_loopback": True, "timeout_s": 5, "attempts": 1}, "engine": {"processes": 1, "concurrency": 4}}
    return IngestConfig.model_validate(values | settings)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://images.cocodataset.org/val2014/COCO_val2014_000000000042.jpg", {("coco", 42)}),
        ("http://images.cocodataset.org/train2017/000000391895.jpg", {("coco", 391895)}),
        ("https://s3.amazonaws.com/images.cocodataset.org/val2017/000000000042.jpg", {("coco", 42)}),
        ("http://mscoco.org/images/COCO_train2014_000000000009.jpg", {("coco", 9)}),
        ("http://farm4.static.flickr.com/3186/2603793472_1f2a3b4c5d.jpg", {("flickr", 2603793472)}),
        ("https://farm4.staticflickr.com/3186/2603793472_1f2a3b4c5d_z.jpg", {("flickr", 2603793472)}),
        ("https://live.staticflickr.com/65535/2603793472_1f2a3b4c5d_b.jpg?x=1", {("flickr", 2603793472)}),
        ("http://a.example/COCO_val2014_000000000042.jpg", set()),
        ("http://a.example/static.flickr.com/1/2603793472_1f2a3b4c5d.jpg", set()),
    ],
)
def test_ids_come_from_the_urls_of_coco_and_flickr(url: str, expected: set[tuple[str, int]]) -> None:
    assert ids_of(url, {}) == expected


def test_ids_come_from_further_columns_as_numbers_or_text() -> None:
    assert ids_of("http://a.example/", {"coco_id": 42, "flickr_id": "1001"}) == {("coco", 42), ("flickr", 1001)}
    assert ids_of("http://a.example/", {"coco_id": None, "flickr_id": "none"}) == set()


def test_a_benchmarks_splits_are_held_out_and_no_others(tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("id\ncoco:7\nFlickr:8\n")
    held_out = {"annotations": karpathy(tmp_path), "ids": [str(tmp_path / "ids.txt")]}
    screen = screening.read(make(tmp_path, [], held_out=held_out))
    assert screen.held_out == {("coco", 42), ("coco", 43), ("flickr", 1001), ("flickr", 1002), ("coco", 7), ("flickr", 8)}
    row = {"uid": "0" * 32, "url": "http://a.example/", "extra": json.dumps({"coco_id": 43})}
    with pytest.raises(Ended, match="held_out: coco:43"):
        screen.check_row(row)
    screen.check_row(row | {"extra": json.dumps({"coco_id": 44})})


@pytest.mark.parametrize(
    ("section", "text", "words"),
    [
        ({"ids": ["bad.txt"]}, "coco:1\n42\n", r"bad\.txt line 2: expected coco:<number>"),
        ({"phashes": ["bad.txt"]}, "0123456789abcdef\nxyz\n", r"bad\.txt line 2: expected the 16 hex digits"),
        ({"annotations": ["absent.json"]}, "", r"absent\.json: not found"),
        ({"annotations": ["bad.txt"]}, "{}", r"bad\.txt: not a Karpathy caption file"),
    ],
)
def test_a_list_that_cannot_be_used_is_named_before_anything_is_written(section: dict[str, list[str]], text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_text(text)
    held_out = {kind: [str(tmp_path / name) for name in names] for kind, names in section.items()}
    with pytest.raises(DataError, match=words):
        ingest.run(make(tmp_path, [{"url": "http://127.0.0.1:9/a.jpg"}], held_out=held_out), tmp_path / "run")
    assert not (tmp_path / "set").exists()


def smooth(seed: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((96, 64), Image.Resampling.BICUBIC)  # what /good/<seed> shows


def test_the_corpus_has_the_hash_of_every_picture_in_folders_zips_and_tars(tmp_path: Path, web: Any, s3_bucket: str) -> None:
    (tmp_path / "copies" / "deep").mkdir(parents=True)
    smooth(1).save(tmp_path / "copies" / "deep" / "one.png")
    (tmp_path / "copies" / "broken.jpg").write_bytes(b"no picture")
    buffer = io.BytesIO()
    smooth(2).save(buffer, "JPEG", quality=60)
    with zipfile.ZipFile(tmp_path / "copies.zip", "w") as archive:
        archive.writestr("val/two.jpg", buffer.getvalue())
        archive.writestr("readme.txt", "x")
    out = f"{s3_bucket}/corpus.parquet"
    assert phash_corpus.build(out, [str(tmp_path / "copies"), str(tmp_path / "copies.zip")]) == (2, [str(tmp_path / "copies" / "broken.jpg")])
    rows = parquet.read_table(out).to_pylist()
    assert [row["name"].removeprefix(str(tmp_path)) for row in rows] == ["/copies.zip/val/two.jpg", "/copies/deep/one.png"]
    with pytest.raises(DataError, match="no picture that can be read"):
        phash_corpus.build(out, [str(tmp_path / "nothing")])

    config = make(tmp_path, [{"url": web.url(f"good/{n}")} for n in range(5)], held_out={"phashes": [out]})
    assert ingest.run(config, tmp_path / "run")["outcomes"] == {"success": 3, "held_out": 2}
    found = {row["url"].rsplit("/", 1)[-1]: row for row in published.rows(config.output, "00000").to_pylist()}
    assert [found[n]["outcome"] for n in "01234"] == ["success", "held_out", "held_out", "success", "success"]


def test_what_a_list_blocks_or_a_benchmark_holds_out_is_not_fetched_or_not_stored(tmp_path: Path, web: Any) -> None:
    rows: list[dict[str, Any]] = [{"url": web.url(f"good/{n}"), "coco_id": 40 + n} for n in range(8)]
    first = make(tmp_path, rows)
    ingest.run(first, tmp_path / "run")
    stored = {row["url"]: row for row in published.rows(first.output, "00000").to_pylist()}
    lines = [rows[0]["url"], stored[rows[1]["url"]]["uid"], stored[rows[4]["url"]]["sha256"], stored[rows[5]["url"]]["phash"]]
    (tmp_path / "block.txt").write_text("\n".join(lines))
    web.asked.clear()
    screened = {"blocked": [str(tmp_path / "block.txt")], "held_out": {"annotations": karpathy(tmp_path)[:1]}}
    config = make(tmp_path, rows, output=str(tmp_path / "screened"), **screened)
    result = ingest.run(config, tmp_path / "run")
    assert result["outcomes"] == {"blocked_by_list": 4, "held_out": 2, "success": 2}
    assert set(web.asked) == {f"good/{n}" for n in (4, 5, 6, 7)}, "by their address they are not even asked for"
    assert sorted(sample.metadata["coco_id"] for sample in map(Dataset.open(config.output).read, range(2))) == [46, 47]


def test_a_list_that_grew_is_told_of_and_other_held_out_lists_are_another_dataset(tmp_path: Path, web: Any, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"url": web.url(f"good/{n}")} for n in range(3)]
    (tmp_path / "block.txt").write_text("")
    config = make(tmp_path, rows, blocked=[str(tmp_path / "block.txt")])
    ingest.run(config, tmp_path / "run")
    (tmp_path / "block.txt").write_text(rows[0]["url"])
    with caplog.at_level("WARNING"):
        assert ingest.run(config, tmp_path / "run")["samples"] == 3
    assert "1 pictures of the dataset are on the lists of ingest.blocked now; take them out with: albef ingest purge" in caplog.text
    assert len(purge.purge(config.output, config.blocked)) == 1
    with pytest.raises(DataError, match="made from other lists of held-out pictures"):
        ingest.run(make(tmp_path, rows, held_out={"annotations": karpathy(tmp_path)}), tmp_path / "run")
