"""All sources of a set in one pair table: rows of one picture meet whatever file they come from, and every row is counted."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from ingest.archives import read_member
from ingest.config import FilterConfig
from ingest.pair_table import build, member_of
from ingest.row_counts import RowCounts, SourceCounts
from ingest.sources.source import Source

COCO = "train2014/COCO_train2014_000000000009.jpg"


def table_of(folder: Path, sources: list[Source]) -> tuple[RowCounts, dict[str, dict[str, Any]]]:
    counts = build(sources, FilterConfig(), 1_000, str(folder / "table"), str(folder / "rejected.parquet"), folder / "scratch")
    rows = [row for path in sorted((folder / "table").iterdir()) for row in pq.read_table(path).to_pylist()]
    return counts, {row["url"]: row for row in rows}


def test_captions_columns_and_places_of_one_picture_meet_across_the_sources(
    tmp_path: Path, source: Callable[..., Source], make_zip: Callable[..., str], make_tar: Callable[..., str]
) -> None:
    (tmp_path / "cc3m.tsv").write_text("one\thttp://a.com/1.jpg\ntwo\thttp://a.com/2.jpg\nno tab\n")
    (tmp_path / "cc12m.tsv").write_text("http://A.com:80/2.jpg\ttwo again\nhttp://a.com/3.jpg\t<PERSON>\nhttp://a.com/4.jpg\t \n")
    (tmp_path / "hashes.tsv").write_text(f"http://a.com/3.jpg\t{hashlib.sha256(b'3').hexdigest()}\t{'0' * 32}\n")
    (tmp_path / "sbu.json").write_text(json.dumps({"image_urls": ["http://static.flickr.com/1/5_a.jpg"], "captions": ["flickr"], "user_ids": ["u"]}))
    annotations = [{"image_id": 9, "id": 1, "caption": "a meal"}, {"image_id": 8, "id": 2, "caption": "nobody's"}]
    images = [{"id": 9, "file_name": COCO.split("/")[1], "coco_url": f"http://images.cocodataset.org/{COCO}"}]
    (tmp_path / "captions.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    entry = {"filepath": COCO.split("/")[0], "filename": COCO.split("/")[1], "cocoid": 9, "imgid": 0, "split": "train"}
    sentences = [{"raw": "a meal", "tokens": ["a", "meal"]}, {"raw": "Closeup.", "tokens": ["closeup"]}]
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": [{**entry, "sentences": sentences}]}))
    regions = [{"id": 1, "regions": [{"phrase": "a clock"}, {"phrase": "a clock"}, {"phrase": ""}]}, {"id": 2, "regions": [{"phrase": "a car"}]}]
    (tmp_path / "region_descriptions.json").write_text(json.dumps(regions))
    vg = [{"image_id": n, "url": f"https://cs.stanford.edu/people/rak248/VG_100K/{n}.jpg", "coco_id": 9 if n == 1 else None} for n in (1, 2)]
    (tmp_path / "image_data.json").write_text(json.dumps(vg))
    (tmp_path / "mirror").mkdir()
    mirrored = {"0.jpg": b"picture 1", "0.txt": b"one of the mirror", "0.json": b'{"url": "http://a.com/1.jpg"}', "1.jpg": b"no url", "1.txt": b"five"}
    make_tar(tmp_path / "mirror" / "00000.tar", mirrored)
    zips = [make_zip(tmp_path / "train2014.zip", {COCO: b"a coco picture"}), make_zip(tmp_path / "images.zip", {"VG_100K/1.jpg": b"a clock"})]

    counts, rows = table_of(
        tmp_path,
        [
            source("cc3m", tmp_path / "cc3m.tsv"),
            source("cc12m", tmp_path / "cc12m.tsv", hashes=str(tmp_path / "hashes.tsv")),
            source("sbu", tmp_path / "sbu.json"),
            source("coco", tmp_path / "captions.json", name="coco"),
            source("karpathy", tmp_path / "dataset_coco.json", name="karpathy", splits=["train"], archives=zips[:1]),
            source("visual_genome", tmp_path / "region_descriptions.json", name="vg", images=str(tmp_path / "image_data.json"), archives=zips[1:]),
            source("webdataset", tmp_path / "mirror"),
        ],
    )

    assert counts.sources == {
        "cc3m": SourceCounts(rows=3, pictures=2, captions=2, rejected={"wrong_number_of_fields": 1}),
        "cc12m": SourceCounts(rows=3, pictures=1, merged=1, captions=2, rejected={"no_caption": 1}),
        "sbu": SourceCounts(rows=1, pictures=1, captions=1),
        "coco": SourceCounts(rows=2, pictures=1, captions=1, rejected={"annotation_without_image": 1}),
        "karpathy": SourceCounts(rows=1, merged=1, captions=1),
        "vg": SourceCounts(rows=3, pictures=1, captions=1, rejected={"region_without_phrase": 1, "not_in_archive": 1}),
        "mirror": SourceCounts(rows=2, pictures=1, merged=1, captions=2),
    }
    assert {url: row["captions"] for url, row in rows.items()} == {
        "http://a.com/1.jpg": ["one", "one of the mirror"],
        "http://a.com/2.jpg": ["two", "two again"],
        "http://a.com/3.jpg": ["<PERSON>"],
        "http://static.flickr.com/1/5_a.jpg": ["flickr"],
        f"http://images.cocodataset.org/{COCO}": ["a meal", "Closeup."],
        "https://cs.stanford.edu/people/rak248/VG_100K/1.jpg": ["a clock"],
        "archive://mirror/00000/1": ["five"],
    }
    places = {url: member for url, row in rows.items() if (member := member_of(row)) is not None}
    assert {url: read_member(member, 100) for url, member in places.items()} == {
        "http://a.com/1.jpg": b"picture 1",
        f"http://images.cocodataset.org/{COCO}": b"a coco picture",
        "https://cs.stanford.edu/people/rak248/VG_100K/1.jpg": b"a clock",
        "archive://mirror/00000/1": b"no url",
    }
    extras = {url: json.loads(row["extra"]) for url, row in rows.items() if row["extra"]}
    assert extras == {
        "http://a.com/3.jpg": {"published_sha256": hashlib.sha256(b"3").hexdigest()},
        "http://static.flickr.com/1/5_a.jpg": {"user_id": "u"},
        f"http://images.cocodataset.org/{COCO}": {"coco_id": 9},
        "https://cs.stanford.edu/people/rak248/VG_100K/1.jpg": {"coco_id": 9},
    }
