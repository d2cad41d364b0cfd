"""Which numbers share a hash, for more of them than memory holds: spilled to partitions by hash, then sorted one partition at a time."""

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

HASH_BYTES = 16
PARTITIONS = 64  # of 14 million hashes: 5 MB each; of 400 million: 150 MB


class HashGroups:
    """Numbers 0, 1, 2, ... with a 16-byte hash each; `groups` says which have the same. The hashes are cryptographic, so spread evenly and never
    the same by chance."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._files = [(folder / f"{number:02d}").open("w+b") for number in range(PARTITIONS)]
        self._count = 0

    def __enter__(self) -> "HashGroups":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for file in self._files:
            file.close()

    def add(self, hashes: bytes) -> None:
        """The hashes of the next numbers, one after the other."""
        import numpy as np

        halves = np.frombuffer(hashes, dtype=">u8").reshape(-1, 2).astype(np.uint64)
        numbers = np.arange(self._count, self._count + len(halves), dtype=np.uint64)
        self._count += len(halves)
        partition = (halves[:, 0] >> np.uint64(58)).astype(np.uint8)  # the first 6 bits: 64 partitions
        order = np.argsort(partition, kind="stable")
        records = np.column_stack([halves, numbers])[order]
        ends = np.cumsum(np.bincount(partition, minlength=PARTITIONS))
        for file, part in zip(self._files, np.split(records, ends[:-1]), strict=True):
            file.write(part.tobytes())

    def groups(self) -> Iterator[tuple["np.ndarray", "np.ndarray", "np.ndarray"]]:
        """For each partition three arrays of one length: its numbers, the smallest number with the same hash, and how many have that hash."""
        import numpy as np

        for file in self._files:
            file.flush()
            file.seek(0)
            records = np.frombuffer(file.read(), dtype=np.uint64).reshape(-1, 3)
            if not len(records):
                continue
            records = records[np.lexsort((records[:, 2], records[:, 1], records[:, 0]))]
            starts = np.flatnonzero(np.r_[True, (records[1:, :2] != records[:-1, :2]).any(axis=1)])
            sizes = np.diff(np.r_[starts, len(records)])
            numbers = records[:, 2].astype(np.int64)
            yield numbers, np.repeat(numbers[starts], sizes), np.repeat(sizes, sizes)
