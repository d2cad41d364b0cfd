"""A tar's bytes for `shards.tar` in bounded memory: headers alone, or all of it once from front to end in large pieces, with its sha256.

Neither is a memory map: where a disk fails or another process cuts the file, a map ends the process, a read says so in one line.
"""

import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self, TypeVar

from pipeline.core import storage
from pipeline.core.errors import DataError
from shards.remote.transport import DEADLINES

T = TypeVar("T")

PIECE_BYTES = 8 * 2**20  # below that the cost per request shows
HELD_PIECES = 4  # a sample's own bytes are looked at after the header that follows it; what lies further back is read again


class LocalSlices:
    """Slices of a local file, each read when it is asked for. What is skipped, such as the pictures between two headers, is not read at all."""

    def __init__(self, path: str) -> None:
        self._path = path
        with storage.errors_named(path):
            self._descriptor = os.open(path.removeprefix("file://"), os.O_RDONLY)
        self._size = os.fstat(self._descriptor).st_size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self._descriptor)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, key: slice) -> bytes:
        start, length = key.start, key.stop - key.start
        try:
            data = os.pread(self._descriptor, length, start)
        except OSError as error:
            raise DataError(f"{self._path}: cannot be read ({error}); check the disk") from error
        if len(data) != length and start + len(data) != self._size:
            raise DataError(f"{self._path}: ended at byte {start + len(data)} while it was read, it had {self._size} bytes; wait until it is complete")
        return data


class TarStream:
    """Slices of a file, local or remote, all of which is read. Meant for one thread; the next piece is fetched while the caller looks at this one."""

    def __init__(self, path: str, piece_bytes: int = PIECE_BYTES) -> None:
        self._path, self._piece_bytes = path, piece_bytes
        self._size = _patiently(path, lambda: storage.size(path))
        self._held: OrderedDict[int, bytes] = OrderedDict()
        self._digest, self._hashed = hashlib.sha256(), 0  # the pieces [0, _hashed) are in the digest
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="albef-tar")
        self._ahead: tuple[int, Future[bytes]] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, key: slice) -> memoryview:
        start, end, _ = key.indices(self._size)
        if start >= end:
            return memoryview(b"")
        first, last = start // self._piece_bytes, (end - 1) // self._piece_bytes
        parts = [memoryview(self._piece(number)) for number in range(first, last + 1)]
        parts[-1] = parts[-1][: end - last * self._piece_bytes]
        parts[0] = parts[0][start - first * self._piece_bytes :]
        return parts[0] if len(parts) == 1 else memoryview(b"".join(parts))

    def sha256(self) -> str:
        """Of the whole file; reads what the walk left unread."""
        for number in range(self._hashed, self._num_pieces):
            self._piece(number)
        return self._digest.hexdigest()

    @property
    def _num_pieces(self) -> int:
        return -(-self._size // self._piece_bytes)

    def _piece(self, number: int) -> bytes:
        while number not in self._held:
            due = min(number, self._hashed)  # never past an unread piece: the digest needs all of them in order
            piece = self._fetched(due)
            if due == self._hashed:
                self._digest.update(piece)
                self._hashed += 1
            self._held[due] = piece
            while len(self._held) > HELD_PIECES:
                self._held.popitem(last=False)
        return self._held[number]

    def _fetched(self, number: int) -> bytes:
        known, self._ahead = self._ahead, None
        piece = known[1].result() if known and known[0] == number else self._fetch(number)
        if number + 1 < self._num_pieces and number == self._hashed:
            self._ahead = (number + 1, self._pool.submit(self._fetch, number + 1))
        return piece

    def _fetch(self, number: int) -> bytes:
        start = number * self._piece_bytes
        end = min(start + self._piece_bytes, self._size)
        piece = _patiently(self._path, lambda: storage.read_range(self._path, start, end))
        if len(piece) != end - start:
            raise DataError(f"{self._path}: ended at byte {start + len(piece)} while it was read, it had {self._size} bytes; wait until it is complete")
        return piece


def _patiently(path: str, operation: Callable[[], T]) -> T:
    """Once more where a remote storage may answer better in a minute; a local disk's error is the user's to see."""
    try:
        return storage.patiently(operation, DEADLINES.patience_s)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error}); check the disk") from error
