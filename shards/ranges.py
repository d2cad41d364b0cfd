"""Ranged reads from shards: local files stay open; a remote shard is fetched once, in large pieces, into a bounded cache on local disk."""

import os
import tempfile
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

from pipeline.core import storage
from pipeline.core.errors import DataError, Stopped

PIECE_BYTES = 16 * 2**20  # below 8 MiB the cost per request shows; decode is the ceiling anyway
CACHE_BYTES = 32 * 2**30  # the 64 shards an order has in use at once, of half a gigabyte each
OPEN_FILES = 128


class _OpenFile:
    """A file descriptor that closes when its last reader lets go."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)


class RangeReader:
    """`read(path, start, length, total)` from many threads; `cache_bytes` bounds what remote shards may fill of the local disk."""

    def __init__(self, cache_bytes: int = CACHE_BYTES) -> None:
        self.cache_bytes = cache_bytes
        self._files: OrderedDict[str, tuple[_OpenFile, int]] = OrderedDict()  # path -> (open file, bytes it fills of the cache)
        self._lock = threading.Lock()
        self._fetching: dict[str, threading.Lock] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"cache_bytes": self.cache_bytes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["cache_bytes"])  # type: ignore[misc]  # a worker process opens its own files

    def read(self, path: str, start: int, length: int, total: int) -> bytes:
        """Bytes [start, start + length) of the shard, whose size is `total`.

        Raises:
            DataError: the shard is missing, or shorter than its manifest says.
            Stopped: the storage fails in a way that may pass.
        """
        file = self._file(path, total)  # kept alive here, so that eviction by another thread closes it only after this read
        try:
            data = os.pread(file.descriptor, length, start)
        except OSError as error:
            raise Stopped(f"{path}: cannot be read ({error}); run the same command again when the storage is back") from error
        if len(data) != length:
            raise DataError(f"{path}: ends at byte {start + len(data)}, the manifest says {total}; it changed while in use")
        return data

    def _file(self, path: str, total: int) -> _OpenFile:
        with self._lock:
            if path in self._files:
                self._files.move_to_end(path)
                return self._files[path][0]
            fetching = self._fetching.setdefault(path, threading.Lock())
        with fetching:  # threads that want the same shard wait for one fetch
            with self._lock:
                if path in self._files:
                    return self._files[path][0]
            local = storage.is_local(path)
            file = _open_local(path) if local else _fetch(path, total)
            with self._lock:
                self._files[path] = (file, 0 if local else total)
                self._fetching.pop(path, None)
                self._evict()
            return file

    def _evict(self) -> None:
        while len(self._files) > 1 and (len(self._files) > OPEN_FILES or sum(size for _, size in self._files.values()) > self.cache_bytes):
            self._files.popitem(last=False)


def _open_local(path: str) -> _OpenFile:
    try:
        return _OpenFile(os.open(path.removeprefix("file://"), os.O_RDONLY))
    except FileNotFoundError:
        raise DataError(f"{path}: not found; the manifest lists it") from None
    except OSError as error:
        raise Stopped(f"{path}: cannot be opened ({error}); run the same command again when the storage is back") from error


def _fetch(path: str, total: int) -> _OpenFile:
    descriptor, name = tempfile.mkstemp(prefix="albef-shard-")
    Path(name).unlink()  # without a name nothing is left behind, however the process dies
    file = _OpenFile(descriptor)
    for start in range(0, total, PIECE_BYTES):
        end = min(start + PIECE_BYTES, total)
        piece = _piece(path, start, end)
        if len(piece) != end - start:
            raise DataError(f"{path}: ends at byte {start + len(piece)}, the manifest says {total}; copy the shard again")
        _write(descriptor, piece, start)
    return file


def _write(descriptor: int, piece: bytes, start: int) -> None:
    written = 0
    while written < len(piece):
        try:
            written += os.pwrite(descriptor, piece[written:], start + written)
        except OSError as error:
            raise Stopped(
                f"{tempfile.gettempdir()}: no room for the shard cache ({error}); point TMPDIR at a larger disk and run the same command again"
            ) from error


def _piece(path: str, start: int, end: int) -> bytes:
    try:
        return storage.read_range(path, start, end)
    except DataError as error:
        if isinstance(error.__cause__, FileNotFoundError | PermissionError):
            raise
        raise Stopped(f"{error}; run the same command again when the storage is back") from error
    except (OSError, TimeoutError) as error:
        raise Stopped(f"{path}: cannot be read ({error}); run the same command again when the storage is back") from error
