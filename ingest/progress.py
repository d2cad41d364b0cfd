"""What each shard in work has got to, told through one small file a shard: whoever is killed, the reader loses nothing but freshness."""

import contextlib
import json
import os
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from pipeline.core import storage
from pipeline.core.errors import DataError

BEAT_S, BEAT_REMOTE_S = 0.5, 5.0


@dataclass
class ShardProgress:
    """One shard's rows by outcome and the bytes of their bodies; `worker` is the process that works on it, or None when it is through.

    `resumed` of the rows were in the journal of an earlier start: they are done, but say nothing of the speed.
    """

    shard: str
    worker: int | None
    outcomes: Counter[str] = field(default_factory=Counter)
    bytes: int = 0
    resumed: int = 0
    beat: int = 0  # counts up, so that a file that stands still is a worker that does

    def save(self, folder: str) -> None:
        self.beat += 1
        with contextlib.suppress(DataError, OSError):  # what really has to be kept is in the journal
            storage.write_bytes(storage.join(folder, f"{self.shard}.json"), json.dumps(vars(self)).encode(), durable=False)

    @contextlib.contextmanager
    def reported(self, folder: str) -> Iterator[None]:
        """Save regularly, by a thread, while the block runs, and once more at its end, however it ends."""
        over = threading.Event()
        thread = threading.Thread(target=self._beat, args=(folder, over), name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            self.worker = None
            self.save(folder)

    def _beat(self, folder: str, over: threading.Event) -> None:
        self.save(folder)
        while not over.wait(BEAT_S if storage.is_local(folder) else BEAT_REMOTE_S):
            self.save(folder)


def read_all(folder: str) -> list[ShardProgress]:
    """All shards anybody worked on since the folder was cleared."""
    found = []
    for name in storage.list_files(folder):
        if name.endswith(".json") and not name.startswith("."):
            record = json.loads(storage.read_bytes(storage.join(folder, name)))
            found.append(ShardProgress(**record | {"outcomes": Counter(record["outcomes"])}))
    return found


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def lost_workers(shards: list[ShardProgress]) -> list[ShardProgress]:
    """Shards whose worker died on them; only for workers on this machine."""
    return [shard for shard in shards if shard.worker is not None and not is_alive(shard.worker)]
