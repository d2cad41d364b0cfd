"""COCO from its zips, a mirror's tars and the web in one dataset: each picture once, stored its source's way, nothing asked of the web that is at hand."""

import hashlib
import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ingest import ingest
from ingest.config import IngestConfig
from shards.dataset import Dataset, Sample

SIZE = (320, 240)


def picture(seed: int) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize(SIZE, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


@pytest.fixture
def config(tmp_path: Path, web: Any) -> IngestConfig:
    write_coco(tmp_path)
    write_mirror(tmp_path / "mirror")
    web_rows = [{"url": web.url("good/1"), "caption": "from the web", "score": 0.31, "faces": [[0.0, 0.0, 1.0, 1.0]]}]
    (tmp_path / "web.jsonl").write_text("".join(json.dumps(row) + "\n" for row in web_rows))
    values: dict[str, Any] = {"output": str(tmp_path / "dataset"), "samples_per_shard": 10, "store": {"image_size": 32}}
    values["sources"] = [
        {"type": "coco", "path": str(tmp_path / "captions.json"), "archives": [str(tmp_path / "val2014.zip")], "store": {"resize_mode": "no"}},
        {"type": "webdataset", "path": str(tmp_path / "mirror"), "name": "mirror"},
        {"type": "jsonl", "path": str(tmp_path / "web.jsonl"), "columns": ["score", "faces"], "store": {"image_size": 48, "blur_column": "faces"}},
    ]
    values["fetch"] = {"allow_loopback": True, "timeout_s": 2, "attempts": 1}
    return IngestConfig.model_validate(values)


def write_coco(folder: Path) -> None:
    """Two pictures of three captions; the second is damaged in the zip."""
    images = [{"id": n, "file_name": f"COCO_val2014_{n:012d}.jpg", "coco_url": f"http://images.cocodataset.org/val2014/{n}.jpg"} for n in (1, 2)]
    annotations = [{"image_id": n, "id": 10 * n + m, "caption": f"caption {m} of {n}"} for n in (1, 2) for m in range(3)]
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    with zipfile.ZipFile(folder / "val2014.zip", "w") as archive:
        for n in (1, 2):
            archive.writestr(f"val2014/COCO_val2014_{n:012d}.jpg", picture(n))
    data = bytearray((folder / "val2014.zip").read_bytes())
    data[data.find(picture(2)) + 500] ^= 0xFF
    (folder / "val2014.zip").write_bytes(data)


def write_mirror(folder: Path) -> None:
    folder.mkdir()
    with tarfile.open(folder / "00000.tar", "w") as archive:
        for number in range(3):
            for suffix, data in (
                ("jpg", picture(100 + number)),
                ("txt", b"from a mirror"),
                ("json", json.dumps({"url": f"http://x.example/{number}.jpg"}).encode()),
            ):
                info = tarfile.TarInfo(f"{number:05d}.{suffix}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))


def by_url(config: IngestConfig) -> dict[str, Sample]:
    dataset = Dataset.open(config.output)
    return {sample.metadata["url"]: sample for sample in map(dataset.read, range(dataset.num_samples))}


def test_each_source_is_read_from_where_it_lies_and_stored_its_own_way(config: IngestConfig, tmp_path: Path, web: Any) -> None:
    result = ingest.run(config, tmp_path / "run")
    assert result["outcomes"] == {"success": 5, "damaged_member": 1}
    assert sum(web.asked.values()) == 1, "only what is nowhere else is fetched"
    found = by_url(config)
    coco = found["http://images.cocodataset.org/val2014/1.jpg"]
    assert coco.image == picture(1), "COCO keeps its bytes"
    assert coco.captions == ("caption 0 of 1", "caption 1 of 1", "caption 2 of 1")
    assert coco.metadata["coco_id"] == 1
    mirrored = found["http://x.example/2.jpg"]
    assert (mirrored.metadata["height"], mirrored.metadata["original_height"], mirrored.captions) == (32, SIZE[1], ("from a mirror",))
    assert mirrored.metadata["sha256"] == hashlib.sha256(picture(102)).hexdigest()
    fetched = found[web.url("good/1")]
    assert (fetched.metadata["height"], fetched.metadata["score"], len(fetched.metadata["phash"])) == (48, 0.31, 16)
    [row] = [row for row in pq.read_table(tmp_path / "dataset" / "outcomes" / "00000.parquet").to_pylist() if row["outcome"] == "damaged_member"]
    assert "another checksum" in row["detail"]


def test_faces_are_blurred_before_anything_is_stored(config: IngestConfig, tmp_path: Path, web: Any) -> None:
    def contrast(config: IngestConfig, run: str) -> float:
        ingest.run(config, tmp_path / run)
        pixels = np.asarray(Image.open(io.BytesIO(by_url(config)[web.url("good/1")].image)).convert("L")).astype(float)
        return float(np.abs(np.diff(pixels, axis=0)).mean() + np.abs(np.diff(pixels, axis=1)).mean())

    source = config.sources[2]
    sharp_source = source.model_copy(update={"store": source.store and source.store.model_copy(update={"blur_column": None})})
    sharp = config.model_copy(update={"output": str(tmp_path / "sharp"), "sources": [sharp_source]})
    assert contrast(config, "run") < 0.8 * contrast(sharp, "run2")
