"""Datasets of photo-like JPEGs for the reading benchmarks, drawn once: the sizes that web datasets are stored in, and those they are fetched in."""

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.app.bench.corpus import photograph
from shards import layout, manifest
from shards.manifest import ShardEntry
from shards.tar import groups
from shards.writer import SampleToWrite, write_shard

VERSION = 1  # of what is drawn
QUALITY = 95
POWER = 1.5  # of the frequency that the texture's amplitude falls with: about 3 bits a pixel in small pictures and 2 in large ones, as photographs have
ASPECTS = (4 / 3, 3 / 2, 1.0, 3 / 4, 2 / 3)
SHARD_SAMPLES = 1000
WORDS = (
    "a",
    "the",
    "of",
    "on",
    "in",
    "with",
    "red",
    "old",
    "small",
    "dog",
    "cat",
    "street",
    "house",
    "tree",
    "water",
    "man",
    "woman",
    "table",
    "view",
    "bridge",
)


@dataclass(frozen=True)
class Sizes:
    """Short sides in pixels, and how many distinct pictures are drawn; under further keys they come again."""

    name: str
    short_sides: tuple[int, int]
    distinct: int


SMALL = Sizes("small", (256, 384), 500)
LARGE = Sizes("large", (640, 1024), 60)


@dataclass(frozen=True)
class PhotoShards:
    """A published dataset and what its pictures are like."""

    folder: Path
    samples: int
    bits_per_pixel: float
    mean_bytes: float
    sizes: Sizes

    @property
    def urls(self) -> list[str]:
        return [str(path) for path in sorted(self.folder.glob("*.tar"))]

    def __str__(self) -> str:
        low, high = self.sizes.short_sides
        return f"JPEG q{QUALITY}, short side {low}-{high}, {self.mean_bytes / 1000:.0f} kB and {self.bits_per_pixel:.2f} bits/pixel on average"


def photo_shards(work: Path, sizes: Sizes, samples: int) -> PhotoShards:
    """Draw and publish what is not there yet; the same arguments give the same bytes."""
    folder = work / f"photos-{sizes.name}-{samples}-v{VERSION}"
    if manifest.newest_number(str(folder)) is None:
        pictures = [_jpeg(sizes, number) for number in range(min(sizes.distinct, samples))]
        entries = []
        for shard, start in enumerate(range(0, samples, SHARD_SAMPLES)):
            rows = (_sample(key, pictures[key % len(pictures)]) for key in range(start, min(start + SHARD_SAMPLES, samples)))
            entries.append(write_shard(layout.tar_path(str(folder), f"{shard:05d}"), rows, source="generated"))
        manifest.publish(str(folder), entries, {"success": samples}, {"quality": QUALITY, "short_sides": sizes.short_sides})
    return _described(folder, sizes)


def repeated(dataset: PhotoShards, samples: int) -> Path:
    """A dataset of that many samples beside it whose shards are links to its first: as many files to open, on little disk."""
    folder = dataset.folder.with_name(f"{dataset.folder.name}-as-{samples}")
    if manifest.newest_number(str(folder)) is None:
        first = manifest.read_manifest(str(dataset.folder), None).shards[0]
        entries = [_linked(dataset.folder, folder, first, f"{shard:05d}") for shard in range(-(-samples // first.samples))]
        manifest.publish(str(folder), entries, {"success": sum(entry.samples for entry in entries)}, {})
    return folder


def _linked(source: Path, folder: Path, first: ShardEntry, name: str) -> ShardEntry:
    for path_of in (layout.tar_path, layout.index_path):
        link = Path(path_of(str(folder), name))
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        os.link(path_of(str(source), first.name), link)
    return replace(first, name=name)


def _sample(number: int, picture: bytes) -> SampleToWrite:
    words = np.random.default_rng(number).choice(WORDS, 10)
    caption = " ".join(words)
    metadata = {"url": f"https://pictures.example/{number:09d}.jpg", "status": "success", "width": 256, "height": 256, "sha256": f"{number:064x}"}
    return SampleToWrite(f"{number:09d}", picture, "jpg", (caption,), metadata)


def _jpeg(sizes: Sizes, number: int) -> bytes:
    draw = np.random.default_rng(number)
    short, aspect = int(draw.integers(sizes.short_sides[0], sizes.short_sides[1] + 1)), float(draw.choice(ASPECTS))
    width, height = (round(short * aspect), short) if aspect >= 1 else (short, round(short / aspect))
    buffer = io.BytesIO()
    photograph(draw, width, height, POWER).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def _described(folder: Path, sizes: Sizes) -> PhotoShards:
    """From the first shard's pictures."""
    listed = manifest.read_manifest(str(folder), None).shards
    pictures = list(_pictures(Path(layout.tar_path(str(folder), listed[0].name)), sizes.distinct))
    bits, pixels = 8 * sum(map(len, pictures)), 0
    for data in pictures:
        with Image.open(io.BytesIO(data)) as image:
            pixels += image.width * image.height
    return PhotoShards(folder, sum(shard.samples for shard in listed), bits / pixels, bits / 8 / len(pictures), sizes)


def _pictures(tar_path: Path, number: int) -> Iterator[bytes]:
    data = memoryview(tar_path.read_bytes())
    for _, group in zip(range(number), groups(data, str(tar_path)), strict=False):
        member = group.members["jpg"]
        yield bytes(data[member.data : member.data + member.size])
