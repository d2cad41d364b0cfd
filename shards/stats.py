"""What is in a dataset: counts, sizes, resolutions, caption lengths, and a contact sheet to look at."""

import io
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pipeline.core import storage
from pipeline.core.errors import DataError
from shards.dataset import DamagedSample, Dataset
from shards.decode import decode_image
from shards.text_rules import pre_caption

_PERCENTILES = (0, 5, 50, 95, 100)
_THUMBNAIL = 128  # pixels


@dataclass(frozen=True)
class Summary:
    """A quantity's mean and its 0, 5, 50, 95 and 100 % points."""

    mean: float
    points: tuple[float, ...]

    def __str__(self) -> str:
        smallest, low, median, high, largest = (f"{point:g}" for point in self.points)
        return f"median {median}, mean {self.mean:.1f}, 90 % within {low}..{high}, all within {smallest}..{largest}"


@dataclass(frozen=True)
class Stats:
    """Counts are of the whole dataset; summaries of the `looked_at` samples read."""

    samples: int
    captions: int
    shards: int
    bytes: int
    sources: dict[str, int]
    outcomes: dict[str, int]
    looked_at: int
    damaged: int
    formats: dict[str, int]
    image_bytes: Summary | None
    width: Summary | None
    height: Summary | None
    caption_words: Summary | None


def gather(dataset: Dataset, limit: int, on_sample: Callable[[], None] = lambda: None) -> Stats:
    """Read up to `limit` samples, evenly spread; damaged ones are counted."""
    damaged, formats = 0, Counter[str]()
    sizes, widths, heights, words = [], [], [], []
    chosen = spread(dataset.num_samples, limit)
    for sample in chosen:
        try:
            read = dataset.read(sample)
            with Image.open(io.BytesIO(read.image), formats=("JPEG", "PNG", "WEBP")) as image:
                formats[str(image.format).lower()] += 1
                widths.append(image.width)
                heights.append(image.height)
            sizes.append(len(read.image))
            words += [len(pre_caption(caption, max_words=10_000).split()) for caption in read.captions]
        except (DamagedSample, OSError, Image.DecompressionBombError):
            damaged += 1
        on_sample()
    manifest = dataset.manifest
    sources = Counter[str]()
    for shard in manifest.shards:
        sources[shard.source] += shard.samples
    totals = (manifest.num_samples, manifest.num_captions, len(manifest.shards), sum(shard.bytes for shard in manifest.shards))
    summaries = (_summary(sizes), _summary(widths), _summary(heights), _summary(words))
    return Stats(*totals, dict(sources), manifest.outcomes, len(chosen), damaged, dict(formats), *summaries)


def write_contact_sheet(dataset: Dataset, path: str, pictures: int = 60, columns: int = 10) -> None:
    """A PNG of evenly spread samples; a damaged one leaves its place red."""
    chosen = spread(dataset.num_samples, pictures)
    if not chosen:
        raise DataError(f"{dataset.folder}: no samples, so no contact sheet")
    sheet = Image.new("RGB", (columns * _THUMBNAIL, -(-len(chosen) // columns) * _THUMBNAIL), "white")
    for place, sample in enumerate(chosen):
        try:
            thumbnail = Image.fromarray(decode_image(dataset.read(sample).image))
            thumbnail.thumbnail((_THUMBNAIL - 4, _THUMBNAIL - 4))
        except DataError:
            thumbnail = Image.new("RGB", (_THUMBNAIL - 4, _THUMBNAIL - 4), "red")
        row, column = divmod(place, columns)
        sheet.paste(thumbnail, (column * _THUMBNAIL + 2, row * _THUMBNAIL + 2))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    storage.write_bytes(path, buffer.getvalue())


def spread(total: int, limit: int) -> list[int]:
    """At most `limit` numbers of range(total), evenly spread."""
    return [int(number) for number in np.linspace(0, total - 1, min(total, limit)).round()] if total else []


def _summary(values: list[int]) -> Summary | None:
    if not values:
        return None
    return Summary(float(np.mean(values)), tuple(float(point) for point in np.percentile(values, _PERCENTILES)))
