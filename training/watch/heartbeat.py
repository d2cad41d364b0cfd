"""Where each rank is and since when: a small file a rank that anyone can read while the run goes on, or after it died."""

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, get_args

log = logging.getLogger(__name__)

# In the order in which a rank comes through them while the number of steps taken stays the same.
Phase = Literal["start", "save", "evaluate", "data", "step", "end"]
PHASES: Sequence[Phase] = get_args(Phase)


@dataclass(frozen=True)
class Beat:
    """The last progress of one rank."""

    host: str
    pid: int
    rank: int
    step: int  # optimizer steps taken
    phase: Phase
    progress_at: str  # UTC, ISO 8601; by the host's clock

    def age_s(self, now: float) -> float:
        """Seconds between the last progress and `now` (as time.time says it)."""
        return now - datetime.fromisoformat(self.progress_at).timestamp()


class Heartbeat:
    """Keeps `<folder>/rank-00003.json` up to date from a thread of its own.

    `beat` only stores three values (0.2 microseconds): a file system that is slow or full holds up the thread, never the training. The file is replaced
    whole, at most once in `every_s`, and the last beat before a silence is always written. A write that fails is warned of once.
    """

    def __init__(self, folder: Path, rank: int, every_s: float = 1.0) -> None:
        self.path = path_of(folder, rank)
        self._rank, self._every_s = rank, every_s
        self._host, self._pid = socket.gethostname(), os.getpid()
        self._last: tuple[Phase, int, float] = ("start", 0, time.time())
        self._written: tuple[Phase, int, float] | None = None
        self._warned = False
        self._closed = threading.Event()
        self._write()
        self._thread = threading.Thread(target=self._keep_written, name="heartbeat", daemon=True)
        self._thread.start()

    def beat(self, phase: Phase, step: int) -> None:
        """This rank makes progress: it begins `phase`, or goes on with it, after `step` optimizer steps."""
        self._last = (phase, step, time.time())  # one store, so that no thread reads half of it

    @contextmanager
    def busy(self, phase: Phase, step: int) -> Iterator[None]:
        """Work that may take longer than a step ever does, such as an evaluation or a save to a store that is away: a thread beats meanwhile."""
        over = threading.Event()

        def beat() -> None:
            while not over.wait(self._every_s):
                self.beat(phase, step)

        self.beat(phase, step)
        thread = threading.Thread(target=beat, name="busy", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    @property
    def last(self) -> Beat:
        return self._as_beat(*self._last)

    def close(self) -> None:
        """The rank ends as it should; the file stays, and says so."""
        self.beat("end", self._last[1])
        self._closed.set()
        self._thread.join(timeout=10)  # a file system that hangs must not keep the process from ending
        if not self._thread.is_alive():
            self._write()

    def _keep_written(self) -> None:
        while not self._closed.wait(self._every_s):
            if self._last is not self._written:
                self._write()

    def _as_beat(self, phase: Phase, step: int, at: float) -> Beat:
        return Beat(self._host, self._pid, self._rank, step, phase, datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds"))

    def _write(self) -> None:
        last, temporary = self._last, self.path.with_suffix(".tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(asdict(self._as_beat(*last))) + "\n")
            temporary.replace(self.path)
            self._written = last
        except OSError as error:
            if not self._warned:
                log.warning("%s: the heartbeat cannot be written (%s); training goes on, and what it says is out of date until it can be", self.path, error)
            self._warned = True


def path_of(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank:05d}.json"


def read_beat(folder: Path, rank: int) -> Beat | None:
    """What a rank last wrote; None where it wrote nothing that can be read."""
    try:
        return Beat(**json.loads(path_of(folder, rank).read_text()))
    except (OSError, ValueError, TypeError):
        return None
