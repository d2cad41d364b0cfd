"""The lists of the set: training pairs as parquet, held-out pictures in Karpathy's format."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.app.openclipart.captions import words_of
from pipeline.app.openclipart.pictures import Picture
from pipeline.app.openclipart.split import shuffled
from pipeline.core import storage


def write_lists(out: Path, pictures: list[Picture], port: int) -> None:
    train = sorted((picture for picture in pictures if picture.split == "train"), key=shuffled)
    rows = [(f"http://127.0.0.1:{port}/pictures/{quote(picture.name)}", caption) for picture in train for caption in picture.captions]
    urls, captions = zip(*rows, strict=True) if rows else ((), ())
    table = pa.table(
        {"url": pa.array(urls, pa.string()), "caption": pa.array(captions, pa.string()), "source": pa.array(["openclipart"] * len(rows), pa.string())}
    )
    with storage.atomic_write(str(out / "pairs.parquet")) as file:
        pq.write_table(table, file)
    held_out = [picture for split in ("val", "test") for picture in sorted(pictures, key=shuffled) if picture.split == split]
    storage.write_bytes(str(out / "karpathy.json"), json.dumps(_karpathy(held_out), ensure_ascii=False).encode())


def _karpathy(pictures: list[Picture]) -> dict[str, Any]:
    """The format of Karpathy's dataset_coco.json."""
    images, sentences = [], _sentences(pictures)
    for number, (picture, own) in enumerate(zip(pictures, sentences, strict=True)):
        folder, _, file = picture.name.rpartition("/")
        image = {"filepath": folder, "filename": file, "imgid": number, "split": picture.split}
        images.append({**image, "sentids": [sentence["sentid"] for sentence in own], "sentences": own})
    return {"images": images, "dataset": "openclipart"}


def _sentences(pictures: list[Picture]) -> Iterator[list[dict[str, Any]]]:
    sentid = 0
    for number, picture in enumerate(pictures):
        own = [{"tokens": words_of(raw), "raw": raw, "imgid": number, "sentid": sentid + place} for place, raw in enumerate(picture.captions)]
        sentid += len(own)
        yield own
