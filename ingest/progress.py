"""What each shard in work has got to, told through one small file a shard: whoever is killed, the reader loses nothing but freshness."""

import contextlib
import json
import os
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

BEAT_S = 0.5


@dataclass
class ShardProgress:
    """One shard's rows by outcome; `worker` is the process id that works on it, or None when it is through."""

    shard: str
    worker: int | None
    outcomes: Counter[str] = field(default_factory=Counter)

    def save(self, folder: Path) -> None:
        target = folder / f"{self.shard}.json"
        temporary = target.with_suffix(".tmp")
        temporary.write_text(json.dumps({"shard": self.shard, "worker": self.worker, "outcomes": dict(self.outcomes)}))
        temporary.replace(target)

    @contextlib.contextmanager
    def reported(self, folder: Path) -> Iterator[None]:
        """Save every half second, by a thread, while the block runs, and once more at its end, however it ends."""
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

    def _beat(self, folder: Path, over: threading.Event) -> None:
        self.save(folder)
        while not over.wait(BEAT_S):
            self.save(folder)


def read_all(folder: Path) -> list[ShardProgress]:
    """All shards anybody worked on since the folder was cleared."""
    found = []
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text())
        found.append(ShardProgress(record["shard"], record["worker"], Counter(record["outcomes"])))
    return found


def newest_beat(folder: Path) -> float:
    """When any file was last saved, in seconds since the epoch; 0 when there is none."""
    return max((path.stat().st_mtime for path in folder.glob("*.json")), default=0.0)


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def lost_workers(shards: list[ShardProgress]) -> list[ShardProgress]:
    """Shards whose worker died on them."""
    return [shard for shard in shards if shard.worker is not None and not is_alive(shard.worker)]
