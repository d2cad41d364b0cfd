"""A lease on a shard or a dataset: of all processes on all machines that see the storage, one works on it, and an orphan notices.

`<folder>/<generation>` holds a counter that its holder raises every few seconds. Whoever wants the lease waits until the highest
generation has stood still for `lease_s` by its own clock (no two machines' clocks are compared), then creates the next one, which only
one of several can (`storage.create`). A holder that finds a higher generation, or none, has lost it and writes nothing more.
"""

import contextlib
import threading
import time
import uuid
from types import TracebackType

from pipeline.core import storage
from pipeline.core.errors import AlbefError, DataError, StorageUnreachable

BEATS_PER_LEASE = 5


class LeaseLost(AlbefError):
    """Another process took the lease over, because this one gave no sign of life for too long."""


class Lease:
    """Held from `claim` to the end of the `with` block, which raises the counter; `check` before anything that others will see."""

    def __init__(self, folder: str, generation: int, lease_s: float, patience_s: float = 0.0) -> None:
        self.folder, self.generation, self.lease_s, self.patience_s = folder, generation, lease_s, patience_s
        self.lost = False  # as far as the last beat knew
        self._holder = uuid.uuid4().hex
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)

    def __enter__(self) -> "Lease":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def check(self) -> None:
        """Raises LeaseLost when somebody else has it now, StorageUnreachable when that cannot be told for `patience_s` seconds."""
        if storage.patiently(lambda: highest(self.folder), self.patience_s) != self.generation:
            raise LeaseLost(f"{self.folder}: another worker took over generation {self.generation}, so this one gives up")

    def _beat(self) -> None:
        count = 0
        while not self._over.wait(self.lease_s / BEATS_PER_LEASE):
            count += 1
            with contextlib.suppress(DataError, OSError):  # the storage may be gone for a while: then `check` says what became of the lease
                self.lost = highest(self.folder) != self.generation
                if not self.lost:
                    storage.write_bytes(_path(self.folder, self.generation), f"{self._holder} {count}".encode())


def claim(folder: str, lease_s: float, patience_s: float = 0.0, holder_is_dead: bool = False) -> Lease:
    """Wait for the lease and take it.

    `holder_is_dead` says that the caller knows of no living holder, so nobody is waited for; `patience_s` for how many seconds to try
    again while the storage does not answer.
    """
    return storage.patiently(lambda: _claim(folder, lease_s, patience_s, holder_is_dead), patience_s)


def _claim(folder: str, lease_s: float, patience_s: float, holder_is_dead: bool) -> Lease:
    while True:
        generation = highest(folder)
        if generation is not None and not holder_is_dead:
            _wait_while_alive(folder, generation, lease_s)
            if highest(folder) != generation:
                continue  # given back, or taken over: whoever came meanwhile has a generation of its own
        if storage.create(_path(folder, (generation or 0) + 1), uuid.uuid4().hex.encode()):
            return Lease(folder, (generation or 0) + 1, lease_s, patience_s)


def release(held: Lease) -> None:
    """Remove every generation; by the holder, after its `with` block: the work is done, or others may do it."""
    storage.patiently(lambda: storage.remove_tree(held.folder), held.patience_s)


def highest(folder: str) -> int | None:
    """The newest generation, or None when nobody ever held the lease."""
    return max((int(name) for name in storage.list_files(folder) if name.isdigit()), default=None)


def _wait_while_alive(folder: str, generation: int, lease_s: float) -> None:
    """Return when the generation's file has not changed for `lease_s` seconds, or is gone."""
    before, since = _content(folder, generation), time.monotonic()
    while before is not None and time.monotonic() - since < lease_s:
        time.sleep(lease_s / BEATS_PER_LEASE)
        if (now := _content(folder, generation)) != before:
            before, since = now, time.monotonic()


def _content(folder: str, generation: int) -> bytes | None:
    path = _path(folder, generation)
    try:
        return storage.read_bytes(path) if storage.exists(path) else None
    except StorageUnreachable:
        raise
    except DataError:  # given back between the two
        return None


def _path(folder: str, generation: int) -> str:
    return storage.join(folder, f"{generation:06d}")
