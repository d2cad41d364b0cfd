"""COCO captions in the owners' format: captions joined to their pictures, pictures found in the zips."""

import json
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ingest.archives import read_member
from ingest.pair import Member, Pair, RejectedRow, Row
from pipeline.core import storage
from pipeline.core.errors import DataError

Read = Callable[..., list[Row]]
Reasons = Callable[[list[Row]], list[tuple[int, str]]]


def image(number: int) -> dict[str, Any]:
    name = f"COCO_train2014_{number:012d}.jpg"
    return {
        "license": 5,
        "file_name": name,
        "coco_url": f"http://images.cocodataset.org/train2014/{name}",
        "height": 640,
        "width": 480,
        "date_captured": "2013-11-14 16:28:13",
        "flickr_url": f"http://farm4.staticflickr.com/3153/{2970773875 + number}_164f0c0b83_z.jpg",
        "id": number,
    }


def write_captions(path: Path, images: list[Any], annotations: list[Any]) -> Path:
    info = {"description": "This is stable 1.0 version of the 2014 MS COCO dataset.", "year": 2014}
    licenses = [{"url": "http://creativecommons.org/licenses/by/2.0/", "id": 4, "name": "Attribution License"}]
    path.write_text(json.dumps({"info": info, "images": images, "licenses": licenses, "annotations": annotations}))
    return path


def annotations_of(captions: dict[int, list[str]]) -> list[dict[str, Any]]:
    """Interleaved, as in the file: the first caption of every image, then the second, ..."""
    rounds = max(map(len, captions.values()))
    flat = [(image_id, texts[n]) for n in range(rounds) for image_id, texts in captions.items() if n < len(texts)]
    return [{"image_id": image_id, "id": 48 + n, "caption": text} for n, (image_id, text) in enumerate(flat)]


CAPTIONS = {
    57870: [
        "A restaurant has modern wooden tables and chairs.",
        "A long restaurant table with rattan rounded back chairs.",
        'a "quoted" table',
        "Café",
        "x" * 5_000,
    ],
    384029: ["A man preparing desserts in a kitchen covered in frosting.", "A chef is preparing and decorating many small pastries.\n"],
    222016: ["a big red telephone booth that a man is standing in"],
}


def pair(number: int, member: Member | None = None) -> Pair:
    return Pair(image(number)["coco_url"], tuple(CAPTIONS[number]), {"coco_id": number}, member)


def test_captions_are_joined_to_their_pictures_in_the_order_of_the_annotations(tmp_path: Path, read: Read) -> None:
    path = write_captions(tmp_path / "captions_train2014.json", [image(number) for number in CAPTIONS], annotations_of(CAPTIONS))
    assert read("coco", path) == [pair(57870), pair(384029), pair(222016)]


def test_every_image_and_every_annotation_that_does_not_fit_is_rejected_by_itself(tmp_path: Path, read: Read) -> None:
    images = [image(57870), image(1), image(57870), {"file_name": "no_id.jpg"}, "no object", image(384029), image(222016)]
    odd = [{"image_id": 999, "id": 1, "caption": "nobody's"}, {"id": 2, "caption": "no image"}, {"image_id": 57870, "id": 3, "caption": " "}, 7]
    path = write_captions(tmp_path / "captions.json", images, odd + annotations_of(CAPTIONS))
    rows = read("coco", path)
    rejected = [(row.row, row.reason) for row in rows if isinstance(row, RejectedRow)]
    assert rejected[:4] == [(1, "annotation_without_image"), (2, "no_image_id"), (3, "no_caption"), (4, "no_image_id")]
    assert rejected[4:] == [(2, "no_caption"), (3, "duplicate_image_id"), (4, "no_image_id"), (5, "no_image_id")]
    assert [row for row in rows if isinstance(row, Pair)] == [pair(57870), pair(384029), pair(222016)]
    assert len(rows) == len(images) + len(odd)


def test_pictures_come_out_of_the_zips_and_those_in_none_are_rejected(tmp_path: Path, read: Read, make_zip: Callable[..., str], s3_bucket: str) -> None:
    path = write_captions(tmp_path / "captions_train2014.json", [image(number) for number in CAPTIONS], annotations_of(CAPTIONS))
    pictures = {number: f"picture {number}".encode() * 50 for number in CAPTIONS}
    first = make_zip(tmp_path / "train2014.zip", {"train2014/": b"", f"train2014/{image(57870)['file_name']}": pictures[57870]})
    second = make_zip(tmp_path / "more.zip", {f"more/{image(222016)['file_name']}": pictures[222016]})
    storage.write_bytes(f"{s3_bucket}/more.zip", Path(second).read_bytes())
    rows = read("coco", path, archives=[first, f"{s3_bucket}/more.zip"])
    assert rows[1] == RejectedRow(2, "not_in_archive", image(384029)["file_name"])
    found = [row for row in rows if isinstance(row, Pair)]
    for row, number, archive in zip(found, (57870, 222016), (first, f"{s3_bucket}/more.zip"), strict=True):
        assert replace(row, member=None) == pair(number)
        assert row.member is not None
        assert (row.member.archive, row.member.crc32) == (archive, zlib.crc32(pictures[number]))
        assert read_member(row.member, 10**6) == pictures[number]


def test_pictures_in_archives_need_no_url(tmp_path: Path, read: Read, make_zip: Callable[..., str]) -> None:
    images = [{"id": 7, "file_name": "shapes/a.png"}]
    path = write_captions(tmp_path / "captions.json", images, [{"image_id": 7, "id": 1, "caption": "a red circle"}])
    (row,) = read("coco", path, name="shapes", archives=[make_zip(tmp_path / "a.zip", {"shapes/a.png": b"png"})])
    assert isinstance(row, Pair)
    assert (row.url, row.captions) == ("archive://shapes/shapes/a.png", ("a red circle",))
    assert read("coco", path) == [RejectedRow(1, "no_url", "None")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": []}', "no key 'annotations'; found an object with images"),
        ('{"annotations": []}', "no key 'images'"),
        ('{"images": {}, "annotations": []}', "'images' is a dict; expected a list"),
        ("[]", "no key 'images'; found a list"),
        ("{", "not valid JSON"),
    ],
)
def test_what_is_no_caption_file_is_named_with_the_key(text: str, message: str, tmp_path: Path, read: Read) -> None:
    (tmp_path / "captions.json").write_text(text)
    with pytest.raises(DataError, match=rf"captions\.json: {message}"):
        read("coco", tmp_path / "captions.json")
