"""Folders of tars as other tools write them."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import webdataset
from PIL import Image

WORDS = ("red", "dog", "cat", "sits", "on", "the", "green", "grass", "with", "a", "hat", "stock", "photo")


def jpeg(seed: int, width: int, height: int) -> bytes:
    generator = np.random.default_rng(seed)
    pixels = np.linspace(0, 255, width)[None, :, None] * generator.random(3) + generator.normal(0, 8, (height, width, 3))
    buffer = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def laion_sample(number: int) -> dict[str, Any]:
    """As img2dataset writes LAION: 9 digits, jpg, txt, json."""
    generator = np.random.default_rng(number)
    width, height = int(generator.integers(40, 120)), int(generator.integers(40, 120))
    caption = " ".join(generator.choice(WORDS, generator.integers(1, 9)))
    key = f"{number:09d}"
    facts = {"caption": caption, "url": f"http://a.example/{key}.jpg", "key": key, "status": "success", "error_message": None, "width": width}
    facts |= {"height": height, "exif": "{}", "similarity": float(generator.random()), "NSFW": str(generator.choice(["UNLIKELY", "UNSURE"]))}
    return {"__key__": key, "jpg": jpeg(number, width, height), "txt": caption, "json": facts}


def write_laion(folder: Path, counts: list[int], first: int = 0) -> Path:
    """A tar for each of `counts`, by webdataset, with the parquet and the json that img2dataset leaves beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard, count in enumerate(counts):
        with webdataset.TarWriter(str(folder / f"{shard:05d}.tar")) as tar:
            for row in range(count):
                tar.write(laion_sample(first + 10_000 * shard + row))
        (folder / f"{shard:05d}.parquet").write_bytes(b"PAR1")
        (folder / f"{shard:05d}_stats.json").write_text(json.dumps({"count": count}))
    return folder


def read_by_webdataset(folder: Path) -> list[dict[str, Any]]:
    """Every sample as webdataset gives it, undecoded, in the order of the tars."""
    ours = ("__url__", "__local_path__")
    return [
        {name: value for name, value in sample.items() if name not in ours}
        for path in sorted(folder.glob("*.tar"))
        for sample in webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False)
    ]
