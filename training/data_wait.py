"""How long training waits for data, and which stage of the loader is to blame."""

import functools
import operator
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np

from shards.stage_times import STAGES, Stage, StageSnapshot, StageTimes

HINTS: dict[Stage, str] = {
    "read": "more training.num_workers hide a slow answer, and a node cache that holds the shards in use saves fetching them again",
    "decode": "more training.num_workers help while the node has idle cores; else keep smaller pictures in the shards",
    "transform": "more training.num_workers help while the node has idle cores; else training.augment_on=device takes RandAugment off them",
    "collate": "more training.num_workers help while the node has idle cores",
}


@dataclass(frozen=True)
class WaitFigures:
    """One rank's last steps. Waits in seconds a step; `busy_*` is how many workers were in that stage on average, `queued` and `ready` are micro-batches."""

    steps: float
    wait_p50_s: float
    wait_p99_s: float
    wait_share: float
    busy_read: float
    busy_decode: float
    busy_transform: float
    busy_collate: float
    queued: float
    ready: float

    @property
    def busy(self) -> dict[Stage, float]:
        return {"read": self.busy_read, "decode": self.busy_decode, "transform": self.busy_transform, "collate": self.busy_collate}


class DataWait:
    """The last `window_steps` steps of one rank.

    The first step is left out: what it waits for is the start, not the pace. So is what comes between two steps, checkpoints and evaluation: neither its time
    nor the work that the loader does meanwhile counts.
    """

    def __init__(self, stage_times: StageTimes, window_steps: int) -> None:
        self._stage_times = stage_times
        self._steps: deque[tuple[float, float, StageSnapshot]] = deque(maxlen=window_steps)  # seconds waited, seconds of the step, what was done in it
        self._before: StageSnapshot | None = None
        self._started = False

    def begin(self) -> None:
        """The wait for the next step's data begins now."""
        self._before = self._stage_times.snapshot()

    def record(self, wait_s: float, step_s: float) -> None:
        """The step that was begun took `step_s` seconds, of which the first `wait_s` were spent waiting for its data."""
        assert self._before is not None
        if self._started:
            self._steps.append((wait_s, step_s, self._stage_times.snapshot() - self._before))
        self._started = True

    def figures(self) -> WaitFigures:
        """Zeros before the second step."""
        if not self._steps:
            return WaitFigures(*[0.0] * len(fields(WaitFigures)))
        waits, seconds = [step[0] for step in self._steps], sum(step[1] for step in self._steps)
        stages = functools.reduce(operator.add, (step[2] for step in self._steps))
        p50, p99 = (float(value) for value in np.percentile(waits, [50, 99]))
        return WaitFigures(
            steps=float(len(waits)),
            wait_p50_s=p50,
            wait_p99_s=p99,
            wait_share=sum(waits) / seconds,
            busy_read=stages.busy_s["read"] / seconds,
            busy_decode=stages.busy_s["decode"] / seconds,
            busy_transform=stages.busy_s["transform"] / seconds,
            busy_collate=stages.busy_s["collate"] / seconds,
            queued=stages.mean_queued,
            ready=stages.mean_ready,
        )


def metrics_of(figures: WaitFigures, slowest_rank: int) -> dict[str, float]:
    """As the log and tensorboard show them: of the rank that waits the longest, since all the others wait for it."""
    return {"data/rank": float(slowest_rank)} | {f"data/{name}": value for name, value in asdict(figures).items() if name != "steps"}


def slowest_rank(ranks: Sequence[WaitFigures]) -> int:
    """The one that waits for the largest share of its time."""
    return max(range(len(ranks)), key=lambda rank: ranks[rank].wait_share)


def warning(figures: WaitFigures, rank: int, warn_share: float) -> str | None:
    """A sentence that names the slow stage where more than `warn_share` of the time goes waiting."""
    if figures.wait_share <= warn_share:
        return None
    busy = figures.busy
    slow = max(busy, key=lambda stage: busy[stage])
    return (
        f"rank {rank} waits for data {100 * figures.wait_share:.0f} % of the time ({figures.steps:.0f} steps, p50 {figures.wait_p50_s:.3g} s, "
        f"p99 {figures.wait_p99_s:.3g} s; training.data_wait_warn_share is {warn_share:g}); the slow stage is {STAGES[slow]}, "
        f"{100 * _share(busy, slow):.0f} % of the workers' busy time: {HINTS[slow]}"
    )


def _share(busy: Mapping[Stage, float], stage: Stage) -> float:
    total = sum(busy.values())
    return busy[stage] / total if total else 0.0
