"""Ranged reads from shards: local files stay open; remote shards come in large aligned pieces, through a cache that the processes of a node share."""

import contextlib
import hashlib
import logging
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from pipeline.core import storage
from pipeline.core.errors import ConfigError, DataError, Stopped
from shards.remote.node_cache import NodeCache
from shards.remote.transport import DEADLINES, Counters, Deadlines, Transport

log = logging.getLogger(__name__)

PIECE_BYTES = 8 * 2**20  # half the size costs more per byte, twice the size doubles the wait for a first batch: docs/streaming.md has both
CACHE_BYTES = 40 * 2**30  # 64 shards of half a GiB, and room to fetch ahead
REQUESTS_IN_FLIGHT = 8  # of one reader's prefetching; the threads that read have one each besides
QUEUED_PIECES = 1024  # 8 GiB announced ahead; what is announced beyond is fetched when it is read
OPEN_FILES = 128


@dataclass(frozen=True)
class ReaderOptions:
    """`cache_bytes` bounds what remote shards fill of the disk below `cache_dir`; None is a folder of the user's in the temporary folder."""

    cache_bytes: int = CACHE_BYTES
    cache_dir: str | None = None
    piece_bytes: int = PIECE_BYTES
    requests_in_flight: int = REQUESTS_IN_FLIGHT
    deadlines: Deadlines = DEADLINES


@dataclass(frozen=True)
class _Piece:
    """Bytes [start, start + size) of an object, and what they are called in the cache."""

    name: str
    start: int
    size: int


class RangeReader:
    """`read(path, start, length, total)` from many threads. A pickled or forked one opens files, cache and connections of its own."""

    def __init__(
        self,
        cache_bytes: int = CACHE_BYTES,
        cache_dir: str | None = None,
        *,
        piece_bytes: int = PIECE_BYTES,
        requests_in_flight: int = REQUESTS_IN_FLIGHT,
        deadlines: Deadlines = DEADLINES,
    ) -> None:
        self._begin(ReaderOptions(cache_bytes, cache_dir, piece_bytes, requests_in_flight, deadlines))
        _readers.add(self)

    def _begin(self, options: ReaderOptions) -> None:
        self.options = options
        self._counters = Counters()
        self._transport = Transport(options.deadlines, self._counters)
        self._lock = threading.Lock()
        self._files: OrderedDict[str, _OpenFile] = OrderedDict()
        self._cache: NodeCache | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._announced: set[str] = set()
        self._closed = threading.Event()

    def __getstate__(self) -> dict[str, Any]:
        return {"options": self.options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._begin(state["options"])
        _readers.add(self)

    @property
    def cache_bytes(self) -> int:
        return self.options.cache_bytes

    @property
    def counters(self) -> dict[str, int]:
        """What this process has done so far: `requests`, `bytes_fetched`, `retries_<reason>` (status_500, status_503, range_ignored, reset, truncated,
        stalled, slow, connect, unreachable), `cache_hits` and `cache_misses` in pieces, `prefetch_dropped` and `prefetch_failed`."""
        return self._counters.snapshot()

    def read(self, path: str, start: int, length: int, total: int, fresh: bool = False, identity: str = "") -> bytes:
        """Bytes [start, start + length) of the shard, whose size is `total`.

        `identity` tells its content from any other that had or will have this path and size: its sha256. `fresh` fetches the pieces
        again that the cache holds of the range.

        Raises:
            ConfigError: the cache cannot be used.
            DataError: the shard is missing, or not of the size its manifest says.
            Stopped: the storage fails in a way that may pass, or the disk is full.
        """
        if start + length > total:
            raise DataError(f"{path}: bytes up to {start + length} are asked for, the manifest says {total}; run `albef shards index` again")
        if storage.is_local(path):
            return self._read_local(path, start, length, total, fresh)
        pieces = list(self._pieces(path, start, start + length, total, identity))
        if len(pieces) > 1:
            self.prefetch(path, pieces[1].start, start + length, total, identity)
        return b"".join(self._read_piece(path, piece, start, length, total, fresh) for piece in pieces)

    def prefetch(self, path: str, start: int, end: int, total: int, identity: str = "") -> None:
        """Announce that bytes [start, end) will be read: their pieces are fetched in the background. Never fails and never waits."""
        if storage.is_local(path):
            return
        with contextlib.suppress(OSError, RuntimeError):  # of a cache folder that is gone, and of an interpreter that ends
            for piece in self._pieces(path, start, min(end, total), total, identity):
                if self._cache is None or not self._cache.holds(piece.name):
                    self._announce(path, piece, total)

    def _announce(self, path: str, piece: _Piece, total: int) -> None:
        with self._lock:
            if self._closed.is_set() or piece.name in self._announced:
                return
            if len(self._announced) >= QUEUED_PIECES:
                self._counters.add("prefetch_dropped")
                return
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.options.requests_in_flight, thread_name_prefix="albef-prefetch")
            self._pool.submit(self._prefetch_piece, path, piece, total)
            self._announced.add(piece.name)

    def close(self) -> None:
        """Give up prefetching and close files; what reads at this moment may end with Stopped."""
        with self._lock:
            self._closed.set()
            pool, self._pool = self._pool, None
            self._files.clear()
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)

    def _pieces(self, path: str, start: int, end: int, total: int, identity: str) -> Iterator[_Piece]:
        size = self.options.piece_bytes
        key = hashlib.sha256(f"{path}\n{total}\n{identity}\n{size}".encode()).hexdigest()[:32]
        for first in range(start - start % size, end, size):
            yield _Piece(f"{key}-{first // size:06d}", first, min(size, total - first))

    def _read_piece(self, path: str, piece: _Piece, start: int, length: int, total: int, fresh: bool) -> bytes:
        """The part of [start, start + length) that lies in the piece."""
        if fresh:
            self._shared_cache().drop(piece.name)
        first, end = max(start, piece.start), min(start + length, piece.start + piece.size)
        data, hit = self._cached(path, piece, first - piece.start, end - first, total)
        self._counters.add("cache_hits" if hit else "cache_misses")
        return data

    def _cached(self, path: str, piece: _Piece, offset: int, length: int, total: int) -> tuple[bytes, bool]:
        return self._shared_cache().read(piece.name, piece.size, offset, length, partial(self._fetch, path, piece, total))

    def _fetch(self, path: str, piece: _Piece, total: int, deadline: float) -> Iterator[memoryview]:
        return self._transport.chunks(path, piece.start, piece.start + piece.size, total, deadline, self._closed)

    def _prefetch_piece(self, path: str, piece: _Piece, total: int) -> None:
        try:
            if not self._closed.is_set() and threading.main_thread().is_alive():  # the interpreter waits for this thread before it ends
                self._cached(path, piece, 0, 0, total)
        except Exception as error:  # whoever reads these bytes meets the same, and says so
            self._counters.add("prefetch_failed")
            log.debug("prefetch: %s", error)
        finally:
            with self._lock:
                self._announced.discard(piece.name)

    def _shared_cache(self) -> NodeCache:
        if self._cache is None:
            with self._lock:
                if self._cache is None:
                    self._cache = _cache(self.options)
        return self._cache

    def _read_local(self, path: str, start: int, length: int, total: int, fresh: bool) -> bytes:
        if fresh:
            with self._lock:
                self._files.pop(path, None)  # the file may have been replaced since it was opened
        file = self._local_file(path)  # kept alive here, so that another thread's opening closes it only after this read
        try:
            data = os.pread(file.descriptor, length, start)
        except OSError as error:
            raise Stopped(f"{path}: cannot be read ({error}); run the same command again when the storage is back") from error
        if len(data) != length:
            raise DataError(f"{path}: ends at byte {start + len(data)}, the manifest says {total}; it changed while in use")
        return data

    def _local_file(self, path: str) -> "_OpenFile":
        with self._lock:
            if path not in self._files:
                self._files[path] = _open_local(path)
                if len(self._files) > OPEN_FILES:
                    self._files.popitem(last=False)
            self._files.move_to_end(path)
            return self._files[path]


def _cache(options: ReaderOptions) -> NodeCache:
    least = (options.requests_in_flight + 1) * options.piece_bytes
    if options.cache_bytes < least:
        needed = f"{options.requests_in_flight} pieces of {options.piece_bytes} bytes in flight and one to read need at least {least}"
        raise ConfigError(f"shard cache of {options.cache_bytes} bytes: {needed}; give it more")
    return NodeCache(options.cache_dir, options.cache_bytes, options.deadlines.patience_s)


class _OpenFile:
    """A file descriptor that closes when its last reader lets go."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)


def _open_local(path: str) -> _OpenFile:
    try:
        return _OpenFile(os.open(path.removeprefix("file://"), os.O_RDONLY))
    except FileNotFoundError:
        raise DataError(f"{path}: not found; the manifest lists it") from None
    except OSError as error:
        raise Stopped(f"{path}: cannot be opened ({error}); run the same command again when the storage is back") from error


_readers: "weakref.WeakSet[RangeReader]" = weakref.WeakSet()


def _begin_again() -> None:
    for reader in list(_readers):
        reader._begin(reader.options)


os.register_at_fork(after_in_child=_begin_again)  # a child must not speak on its parent's connections, nor wait for locks of threads it does not have
