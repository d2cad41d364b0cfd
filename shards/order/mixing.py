"""Several datasets as one: their samples numbered through."""

from collections.abc import Sequence

import numpy as np

from pipeline.core.errors import DataError
from pipeline.core.run_directory import fingerprint
from shards.dataset import Dataset, Part, Sample
from shards.order.blend import Source
from shards.remote.ranges import RangeReader


def open_blend(sources: Sequence[Source], manifests: dict[str, int] | None = None, reader: RangeReader | None = None) -> "Dataset | MixedDataset":
    """Open every source with the manifest of its own configuration, else of `manifests` (by name), else the newest; they share the reader and its cache.

    Raises:
        DataError: a dataset is missing or its manifest damaged.
    """
    reader = reader or RangeReader()
    pinned = manifests or {}
    opened = [Dataset.open(source.folder, source.manifest if source.manifest is not None else pinned.get(source.name), reader=reader) for source in sources]
    if len(opened) == 1:
        return opened[0]
    return MixedDataset([Part(source.name, source.share, dataset) for source, dataset in zip(sources, opened, strict=True)])


class MixedDataset:
    """Datasets whose samples are numbered through, part after part. Safe to use from several threads."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = tuple(parts)
        self.starts = np.cumsum([0, *(part.dataset.num_samples for part in parts)], dtype=np.int64)
        self.folder = " + ".join(part.dataset.folder for part in parts)

    @property
    def fingerprint(self) -> str:
        """Of the parts' names, shares and own fingerprints."""
        return fingerprint([(part.name, str(part.share), part.dataset.fingerprint) for part in self.parts])

    @property
    def num_samples(self) -> int:
        return int(self.starts[-1])

    @property
    def pinned(self) -> dict[str, int]:
        """The number of each part's manifest."""
        return {part.name: part.dataset.manifest.number for part in self.parts}

    def part_of(self, sample: int) -> tuple[int, int]:
        """The number of the part that holds the sample, and the sample's number there."""
        part = int(np.searchsorted(self.starts, sample, side="right")) - 1
        return part, sample - int(self.starts[part])

    def read(self, sample: int, fresh: bool = False) -> Sample:
        """As `Dataset.read`."""
        if not 0 <= sample < self.num_samples:
            raise IndexError(sample)
        part, own = self.part_of(sample)
        return self.parts[part].dataset.read(own, fresh)

    def name_of(self, sample: int) -> str:
        """The shard's path and the row in it, for messages."""
        part, own = self.part_of(sample)
        return self.parts[part].dataset.name_of(own)

    def bytes_of(self, sample: int) -> int:
        part, own = self.part_of(sample)
        return self.parts[part].dataset.bytes_of(own)


def refuse_parts_without_items(parts: Sequence[Part], items: Sequence[int], lanes: int) -> None:
    """Raises DataError for a dataset that cannot give every lane an item."""
    for part, count in zip(parts, items, strict=True):
        if count < lanes:
            raise DataError(f"{part.dataset.folder}: {count} items are fewer than the {lanes} lanes; take it out of the blend, or set fewer lanes")
