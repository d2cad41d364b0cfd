"""Where a loader's workers spend their time, and how far they are ahead: what tells a slow storage from a slow decoder."""

import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

Stage = Literal["read", "decode", "transform", "collate"]
STAGES: dict[Stage, str] = {
    "read": "reading (storage, node cache, checksum)",
    "decode": "decoding pictures",
    "transform": "transforming pictures (resize, flip, RandAugment)",
    "collate": "collating (captions to tokens, batch)",
}


@dataclass(frozen=True)
class StageSnapshot:
    """Sums since the loader was made; the difference of two is what happened between them.

    `busy_s` are the seconds that workers were inside each stage, all workers together. A micro-batch goes through all stages in one worker, so it queues
    twice: until a worker takes it up, and, once made, until the trainer takes it. Both queues are looked at, `looks` times, whenever the trainer comes for one.
    """

    busy_s: dict[Stage, float]
    queued: int = 0
    ready: int = 0
    looks: int = 0

    def __sub__(self, earlier: "StageSnapshot") -> "StageSnapshot":
        busy_s = {stage: seconds - earlier.busy_s[stage] for stage, seconds in self.busy_s.items()}
        return StageSnapshot(busy_s, self.queued - earlier.queued, self.ready - earlier.ready, self.looks - earlier.looks)

    def __add__(self, other: "StageSnapshot") -> "StageSnapshot":
        busy_s = {stage: seconds + other.busy_s[stage] for stage, seconds in self.busy_s.items()}
        return StageSnapshot(busy_s, self.queued + other.queued, self.ready + other.ready, self.looks + other.looks)

    @property
    def mean_queued(self) -> float:
        """Micro-batches that no worker had taken up."""
        return self.queued / self.looks if self.looks else 0.0

    @property
    def mean_ready(self) -> float:
        """Micro-batches that were made when the trainer came: 0 says that it had to wait."""
        return self.ready / self.looks if self.looks else 0.0


class StageTimes:
    """Adds up over all workers of a loader; `with times.busy("read"):` costs about a microsecond."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._busy_s: dict[Stage, float] = dict.fromkeys(STAGES, 0.0)
        self._queued = self._ready = self._looks = 0

    def busy(self, stage: Stage) -> "_Busy":
        """Times what happens inside the `with`."""
        return _Busy(self, stage)

    def add(self, stage: Stage, seconds: float) -> None:
        with self._lock:
            self._busy_s[stage] += seconds

    def look_at(self, ahead: Iterable[Future[Any]]) -> None:
        """Count the micro-batches ahead of the trainer that are made, and those not yet begun."""
        ready = queued = 0
        for future in ahead:
            if future.done():
                ready += 1
            elif not future.running():
                queued += 1
        with self._lock:
            self._ready, self._queued, self._looks = self._ready + ready, self._queued + queued, self._looks + 1

    def snapshot(self) -> StageSnapshot:
        with self._lock:
            return StageSnapshot(dict(self._busy_s), self._queued, self._ready, self._looks)


class _Busy:
    __slots__ = ("_stage", "_start", "_times")

    def __init__(self, times: StageTimes, stage: Stage) -> None:
        self._times, self._stage = times, stage

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._times.add(self._stage, time.perf_counter() - self._start)
