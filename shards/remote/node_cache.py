"""Pieces of remote shards as files in a folder that all processes of a node share; bounded, and whole however a process dies.

    <key of the shard>-<number>         a piece: appears by rename, complete
    <key of the shard>-<number>.part    a piece being fetched, locked by who fetches it
    ledger                              bytes that pieces and parts fill, or more; read and written under its lock

Locks are the kernel's (flock): who dies lets go. The ledger is raised before bytes are written and lowered after they are gone, so a death
in between leaves it too high, never too low; the count that precedes an eviction, and the one at each start, set it right.
"""

import contextlib
import fcntl
import os
import re
import stat
import struct
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.errors import ConfigError, Stopped

PIECE_NAME = re.compile(r"[0-9a-f]{32}-[0-9]{6}(\.part)?")  # anything else in the folder is not ours to count or remove
TOUCH_EVERY_S = 5.0  # a piece in use is marked as used that often
SPARE_SHARE = 16  # an eviction makes room for a sixteenth of the cache, so that the folder is listed once for many pieces
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.001, 0.05  # between looks at a lock that another has
_LEDGER = struct.Struct("<Q")
_UNKNOWN = 2**63

Fetch = Callable[[float], Iterable[bytes | memoryview]]  # deadline -> the bytes of a piece in chunks


@dataclass(frozen=True)
class _Kept:
    """A complete piece in the folder."""

    used: float
    size: int
    path: str


class NodeCache:
    """Reads pieces, fetching those that are not there: each once a node, while others wait for it or take over from a fetcher that died.

    Processes may set different bounds on one folder: each makes room for its own pieces down to its own.
    """

    def __init__(self, folder: str | None, cache_bytes: int, patience_s: float) -> None:
        """`folder` None is one of the user's in the temporary folder, where the next run finds what this one fetched.

        Raises:
            ConfigError: the folder cannot be used.
        """
        self.cache_bytes, self.patience_s, self.touch_every_s = cache_bytes, patience_s, TOUCH_EVERY_S
        self.folder = _made(folder)
        try:
            with self._ledger(self._deadline()) as ledger:
                ledger.total = self._evicted_to(self.cache_bytes)
        except OSError as error:
            raise _unusable(self.folder, f"cannot be used ({error})") from error

    def read(self, name: str, size: int, offset: int, length: int, fetch: Fetch) -> tuple[bytes, bool]:
        """Bytes [offset, offset + length) of the piece, whose size is `size`, and whether it was there already.

        Raises:
            Stopped: the disk is full or fails, or another process keeps a lock for longer than the patience; and what `fetch` raises.
        """
        try:
            descriptor = self._open_kept(name, size)
            hit = descriptor is not None
            if descriptor is None:
                descriptor = self._fetched(name, size, fetch)
            try:
                return os.pread(descriptor, length, offset), hit
            finally:
                _close(descriptor)
        except OSError as error:
            raise self._failing(name, error) from error

    def holds(self, name: str) -> bool:
        """Whether the piece is there; it counts as used."""
        try:
            self._touch(self._path(name), Path(self._path(name)).stat())
        except FileNotFoundError:
            return False
        return True

    def drop(self, name: str) -> None:
        """Remove a piece; who has it open reads on.

        Raises Stopped as `read` does.
        """
        try:
            with self._ledger(self._deadline()) as ledger:
                ledger.total -= _removed(self._path(name))
        except OSError as error:
            raise self._failing(name, error) from error

    def _path(self, name: str) -> str:
        return f"{self.folder}/{name}"

    def _deadline(self) -> float:
        return time.monotonic() + self.patience_s

    def _open_kept(self, name: str, size: int) -> int | None:
        """A descriptor of the complete piece. None is kept open between reads: a removed piece must give its bytes back at once."""
        try:
            descriptor = os.open(self._path(name), os.O_RDONLY)
        except FileNotFoundError:
            return None
        found = os.fstat(descriptor)
        if found.st_size != size:  # the machine lost power before the disk had it
            os.close(descriptor)
            self.drop(name)
            return None
        self._touch(descriptor, found)
        return descriptor

    def _touch(self, piece: int | str, found: os.stat_result) -> None:
        if time.time() - found.st_mtime > self.touch_every_s:
            os.utime(piece)

    def _fetched(self, name: str, size: int, fetch: Fetch) -> int:
        """A descriptor of the piece, fetched by us or by who was before us."""
        deadline = self._deadline()
        while True:
            part = self._open_part(name)
            try:
                _lock(part, deadline, self._path(name))
                kept = self._open_kept(name, size)
                if kept is None and self._is_part(part, name):
                    self._fill(part, name, size, fetch, deadline)
                    return part
            except BaseException:
                _close(part)
                raise
            if self._is_part(part, name):  # made by us, after the piece was complete
                Path(self._path(f"{name}.part")).unlink()
            _close(part)
            if kept is not None:
                return kept

    def _open_part(self, name: str) -> int:
        return self._open_or_create(self._path(f"{name}.part"))

    def _is_part(self, part: int, name: str) -> bool:
        """Whether the part we have locked is still the one in the folder: who fetched it renamed it, and a count removes it where its fetcher died."""
        try:
            return os.path.samestat(os.fstat(part), Path(self._path(f"{name}.part")).stat())
        except FileNotFoundError:
            return False

    def _fill(self, part: int, name: str, size: int, fetch: Fetch, deadline: float) -> None:
        try:
            self._reserve(part, size, deadline)
            os.lseek(part, 0, os.SEEK_SET)
            for chunk in fetch(deadline):
                self._write(part, chunk)
            with self._ledger(deadline + self.patience_s):  # a count must see the piece under one name
                Path(self._path(f"{name}.part")).rename(self._path(name))
        except BaseException:
            with self._ledger(deadline + self.patience_s) as ledger:
                ledger.total -= _removed(self._path(f"{name}.part"))
            raise

    def _reserve(self, part: int, size: int, deadline: float) -> None:
        """Grow the part to its full size, once the cache has room for it; where others' parts fill it, wait for them."""
        pause = FIRST_PAUSE_S
        while True:
            with self._ledger(deadline) as ledger:
                if ledger.total + size > self.cache_bytes:
                    ledger.total = self._evicted_to(self.cache_bytes - size - self.cache_bytes // SPARE_SHARE)
                if ledger.total + size <= self.cache_bytes:
                    self._grow(part, size)
                    ledger.total += size
                    return
            if time.monotonic() > deadline:
                raise Stopped(f"{self.folder}: no room for a piece of {size} bytes within {self.patience_s:g} s; make the cache larger than {self.cache_bytes}")
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)

    def _grow(self, part: int, size: int) -> None:
        try:
            os.ftruncate(part, size)
        except OSError as error:
            raise self._full(error) from error

    def _write(self, part: int, chunk: bytes | memoryview) -> None:
        rest = memoryview(chunk)
        try:
            while rest:
                rest = rest[os.write(part, rest) :]
        except OSError as error:
            raise self._full(error) from error

    def _failing(self, name: str, error: OSError) -> Stopped:
        return Stopped(f"{self._path(name)}: the shard cache fails ({error}); put it on another disk and run the same command again")

    def _full(self, error: OSError) -> Stopped:
        return Stopped(f"{self.folder}: no room for the shard cache ({error}); put it on a larger disk and run the same command again")

    def _evicted_to(self, target: int) -> int:
        """Count what is there, remove parts of the dead, then the least recently used pieces down to `target` bytes; the bytes left.

        Under the ledger's lock.
        """
        kept, parts = self._counted()
        total = parts + sum(piece.size for piece in kept)
        for piece in sorted(kept, key=lambda piece: piece.used):
            if total <= target:
                break
            total -= _removed(piece.path)
        return total

    def _counted(self) -> tuple[list[_Kept], int]:
        """The complete pieces, and the bytes of those being fetched."""
        kept, parts = [], 0
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if not PIECE_NAME.fullmatch(entry.name):
                    continue
                with contextlib.suppress(FileNotFoundError):
                    found = entry.stat(follow_symlinks=False)
                    if not entry.name.endswith(".part"):
                        kept.append(_Kept(found.st_mtime, found.st_size, entry.path))
                    elif not _removed_if_dead(entry.path):
                        parts += found.st_size
        return kept, parts

    @contextlib.contextmanager
    def _ledger(self, deadline: float) -> Iterator["_Ledger"]:
        """The bytes in use, ours alone until the block ends."""
        path = self._path("ledger")
        descriptor = self._open_or_create(path)
        try:
            _lock(descriptor, deadline, path)
            ledger = _Ledger.read(descriptor)
            yield ledger
            self._write_ledger(descriptor, ledger)
        finally:
            _close(descriptor)

    def _write_ledger(self, descriptor: int, ledger: "_Ledger") -> None:
        try:
            os.pwrite(descriptor, _LEDGER.pack(ledger.total), 0)
        except OSError as error:
            raise self._full(error) from error

    def _open_or_create(self, path: str) -> int:
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except FileNotFoundError:  # a cleaner of temporary folders was here
            Path(self.folder).mkdir(mode=0o700, parents=True, exist_ok=True)
            return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise Stopped(f"{path}: cannot be opened ({error}); make room or rights there and run the same command again") from error


@dataclass
class _Ledger:
    """Bytes in use; a ledger that was lost counts as full, so that the next piece has the folder counted."""

    total: int

    @classmethod
    def read(cls, descriptor: int) -> "_Ledger":
        data = os.pread(descriptor, _LEDGER.size, 0)
        return cls(_LEDGER.unpack(data)[0] if len(data) == _LEDGER.size else _UNKNOWN)


def _made(folder: str | None) -> str:
    path = Path(tempfile.gettempdir(), f"albef-shards-{os.geteuid()}") if folder is None else Path(folder)
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder is None:
            _refuse_a_stranger_s(path)
    except OSError as error:
        raise _unusable(str(path), f"cannot be made ({error})") from error
    return folder or str(path)


def _refuse_a_stranger_s(folder: Path) -> None:
    """The user's own folder lies below one that everybody may write: what a stranger laid there is not to be trusted with our bytes."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise ConfigError(f"shard cache folder {folder}: is not a folder that only you may write; remove it, or set TMPDIR or the cache folder")


def _unusable(folder: str, what: str) -> ConfigError:
    return ConfigError(f"shard cache folder {folder}: {what}; name one on a local disk that you may write")


def _lock(descriptor: int, deadline: float, path: str) -> None:
    """Take the file's lock. Looked for again and again rather than waited for: a holder that was suspended must not suspend us."""
    pause = FIRST_PAUSE_S
    _lockable.add(descriptor)
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise Stopped(f"{path}: another process keeps it locked; end that process, or run the same command again when it is done") from None
        except OSError as error:
            raise ConfigError(f"{path}: its file system has no locks ({error}); put the shard cache on a local disk") from error
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_S)


def _close(descriptor: int) -> None:
    """Unlocked first: closing alone would leave the lock with a child that was forked between the opening of the file and its noting."""
    with contextlib.suppress(OSError):  # of a file system without locks
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    _lockable.discard(descriptor)
    os.close(descriptor)


def _let_go() -> None:
    for descriptor in _lockable:
        os.close(descriptor)
    _lockable.clear()


_lockable: set[int] = set()  # open files of this process that may hold a lock
os.register_at_fork(after_in_child=_let_go)  # a lock lasts until its last holder dies: a child must not keep its dead parent's


def _removed(path: str) -> int:
    """Remove the file; the bytes it filled, 0 where it was gone."""
    try:
        size = Path(path).stat().st_size
        Path(path).unlink()
    except FileNotFoundError:
        return 0
    return size


def _removed_if_dead(part: str) -> bool:
    """Remove a part that nobody has locked: its fetcher died."""
    descriptor = os.open(part, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        Path(part).unlink()
        return True
    finally:
        os.close(descriptor)
