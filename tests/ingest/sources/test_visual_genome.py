"""Visual Genome in the owners' format: the phrases of all regions of a picture become its captions."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ingest.archives import read_member
from ingest.pair import Pair, RejectedRow, Row
from pipeline.core import storage
from pipeline.core.errors import DataError

Read = Callable[..., list[Row]]
Reasons = Callable[[list[Row]], list[tuple[int, str]]]


def image(number: int, coco_id: int | None = None, flickr_id: int | None = None) -> dict[str, Any]:
    folder = "VG_100K" if number % 2 else "VG_100K_2"
    url = f"https://cs.stanford.edu/people/rak248/{folder}/{number}.jpg"
    return {"width": 800, "url": url, "height": 600, "image_id": number, "coco_id": coco_id, "flickr_id": flickr_id}


def region(number: int, n: int, phrase: Any, size: int = 100) -> dict[str, Any]:
    return {"region_id": 1382 + n, "width": size, "height": 139, "image_id": number, "phrase": phrase, "y": 57, "x": 421}


def regions(number: int, *phrases: Any) -> dict[str, Any]:
    return {"regions": [region(number, n, phrase) for n, phrase in enumerate(phrases)], "id": number}


IMAGES = [image(1), image(2, coco_id=547168, flickr_id=8505158818), image(3), image(4), image(2, coco_id=7), {"url": "no id"}]
PHRASES = ["the clock is green in colour", 'a sign that says "STOP"', " trailing space ", "x" * 5_000, "the clock is green in colour", "é 猫 \U0001f600"]
ENTRIES = [regions(1, *PHRASES), regions(2, "a cat", "", None, "   "), regions(9, "nobody's"), {"id": 3}, {"regions": []}, regions(3), "no object"]


@pytest.fixture
def written(tmp_path: Path) -> tuple[str, str]:
    (tmp_path / "region_descriptions.json").write_text(json.dumps(ENTRIES))
    (tmp_path / "image_data.json").write_text(json.dumps(IMAGES))
    return str(tmp_path / "region_descriptions.json"), str(tmp_path / "image_data.json")


def test_every_entry_region_and_picture_is_accounted_for(written: tuple[str, str], read: Read, reasons_of: Reasons) -> None:
    rows = read("visual_genome", written[0], images=written[1])
    assert [row for row in rows if isinstance(row, Pair)] == [
        Pair(IMAGES[0]["url"], tuple(phrase.strip() for phrase in PHRASES)),
        Pair(IMAGES[1]["url"], ("a cat",), {"coco_id": 547168, "flickr_id": 8505158818}),
    ]
    assert reasons_of(rows) == [
        (5, "duplicate_image_id"),  # of image_data
        (6, "no_image_id"),
        *[(2, "region_without_phrase")] * 3,
        (3, "regions_without_image"),
        (4, "no_regions"),
        (5, "no_image_id"),
        (6, "no_caption"),
        (7, "no_image_id"),
        (8, "image_without_regions"),  # 4, which nobody describes
    ]


def test_of_the_largest_regions_the_phrases_stay_in_order(tmp_path: Path, read: Read) -> None:
    sizes = {"small": 10, "large": 500, "middle": 90, "largest": 600, "large too": 500}
    entry = {"id": 1, "regions": [region(1, n, phrase, size) for n, (phrase, size) in enumerate(sizes.items())]}
    (tmp_path / "region_descriptions.json").write_text(json.dumps([entry]))
    (tmp_path / "image_data.json").write_text(json.dumps([image(1)]))

    def phrases(number: int | None) -> tuple[str, ...]:
        (row,) = read("visual_genome", tmp_path / "region_descriptions.json", images=str(tmp_path / "image_data.json"), largest_regions=number)
        assert isinstance(row, Pair)
        return row.captions

    assert phrases(None) == phrases(9) == tuple(sizes)
    assert phrases(2) == ("large", "largest")
    assert phrases(3) == ("large", "largest", "large too")


def test_pictures_come_out_of_the_two_zips(written: tuple[str, str], tmp_path: Path, read: Read, make_zip: Callable[..., str], s3_bucket: str) -> None:
    first = make_zip(tmp_path / "images.zip", {"VG_100K/1.jpg": b"one", "VG_100K/5.jpg": b"five"})
    second = make_zip(tmp_path / "images2.zip", {"VG_100K_2/1.jpg": b"another of that name", "VG_100K_2/2.jpg": b"two"})
    for path in (*written, first, second):
        storage.write_bytes(f"{s3_bucket}/vg/{Path(path).name}", Path(path).read_bytes())
    for archives in ([first, second], [second, first]):
        rows = read("visual_genome", written[0], images=written[1], archives=archives)
        assert [read_member(row.member, 100) for row in rows if isinstance(row, Pair) and row.member] == [b"one", b"two"]
    there = [f"{s3_bucket}/vg/{name}" for name in ("images.zip", "images2.zip")]
    remote = read("visual_genome", f"{s3_bucket}/vg/region_descriptions.json", images=f"{s3_bucket}/vg/image_data.json", archives=there)
    assert [read_member(row.member, 100) for row in remote if isinstance(row, Pair) and row.member] == [b"one", b"two"]
    alone = read("visual_genome", written[0], images=written[1], archives=[make_zip(tmp_path / "other.zip", {"VG_100K_2/2.jpg": b"two"})])
    assert RejectedRow(1, "not_in_archive", "VG_100K/1.jpg") in alone


def test_what_is_no_visual_genome_file_is_named(written: tuple[str, str], tmp_path: Path, read: Read) -> None:
    for text, message in (
        ("{}", "expected a list of images with regions"),
        (json.dumps(ENTRIES)[:-400], "not valid JSON after"),
        ("", "not valid JSON after 0"),
    ):
        (tmp_path / "odd.json").write_text(text)
        with pytest.raises(DataError, match=rf"odd\.json: {message}"):
            read("visual_genome", tmp_path / "odd.json", images=written[1])
    with pytest.raises(DataError, match=r"odd\.json: not valid JSON"):
        read("visual_genome", written[0], images=str(tmp_path / "odd.json"))
    (tmp_path / "odd.json").write_text("{}")
    with pytest.raises(DataError, match="is it image_data"):
        read("visual_genome", written[0], images=str(tmp_path / "odd.json"))
