"""Small datasets for the shards' tests."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from pipeline.core import storage
from shards import layout, manifest, writer
from shards.dataset import Dataset
from shards.index import ShardIndex

MakeDataset = Callable[..., Dataset]


def picture(seed: int, height: int = 24, width: int = 32) -> np.ndarray:
    """A smooth gradient with a block in it, different for each seed."""
    generator = np.random.default_rng(seed)
    image = np.linspace(0, 200, width, dtype=np.float32)[None, :, None] * generator.random(3, dtype=np.float32) + np.zeros((height, 1, 1), np.float32)
    top, left = generator.integers(0, height // 2), generator.integers(0, width // 2)
    image[top : top + height // 3, left : left + width // 3] = generator.integers(0, 255, 3)
    return image.astype(np.uint8)


def every_index(dataset: Dataset) -> list[ShardIndex]:
    """The index of each shard, held against its manifest as it is when training first needs it."""
    return [dataset.indexes(shard) for shard in range(len(dataset.manifest.shards))]


def captions_per_sample(dataset: Dataset) -> list[int]:
    return [count for one in every_index(dataset) for count in one.captions.tolist()]


def samples(shard: int, count: int) -> list[writer.SampleToWrite]:
    """Samples with 1, 2 or 3 captions in turn."""
    made = []
    for number in range(count):
        seed = 1000 * shard + number
        captions = tuple(f"Picture {seed}, caption {caption}!" for caption in range(1 + seed % 3))
        made.append(writer.SampleToWrite(f"{shard:05d}{number:04d}", simplejpeg.encode_jpeg(picture(seed), quality=90), "jpg", captions, {"url": f"u{seed}"}))
    return made


@pytest.fixture
def make_dataset(tmp_path: Path) -> MakeDataset:
    """`make_dataset(counts, folder=None)`: a published dataset with that many samples in each shard."""

    def make(counts: list[int], folder: str | None = None) -> Dataset:
        folder = folder or str(tmp_path / "dataset")
        entries = [writer.write_shard(layout.tar_path(folder, f"{shard:05d}"), samples(shard, count), "made") for shard, count in enumerate(counts)]
        manifest.publish(folder, entries, {"success": sum(counts)}, {"made": "by a test"})
        return Dataset.open(folder)

    return make


@pytest.fixture
def flip_byte() -> Callable[[str, int], None]:
    """Change one byte of a file, as a bad disk does."""

    def flip(path: str, offset: int) -> None:
        data = bytearray(storage.read_bytes(path))
        data[offset] ^= 0xFF
        Path(path).write_bytes(data)

    return flip
