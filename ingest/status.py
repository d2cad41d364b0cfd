"""Where ingest is, as a value: the live line shows it, and `status.json` in the run folder holds it for a dashboard."""

import contextlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from ingest.outcomes import Outcome
from pipeline.core import storage
from pipeline.core.errors import DataError

State = Literal["running", "finished", "stopped"]
FILE = "status.json"
TOP_FAILURES = 3


@dataclass(frozen=True)
class Status:
    """`finished`: every row has its outcome. The speeds are those of the last half minute; `reason` says why it stopped."""

    state: State
    total: int
    outcomes: Mapping[str, int]
    pictures_per_s: float = 0.0
    bytes_per_s: float = 0.0
    eta_s: float | None = None
    workers: int = 0
    reason: str | None = None

    @property
    def done(self) -> int:
        return sum(self.outcomes.values())

    @property
    def to_go(self) -> int:
        return self.total - self.done

    def line(self) -> str:
        """`ETA 1 h 20 min, 312 pictures/s, 41.2 MB/s, 97.2 % success, timeout 12, http_404 9, 2 workers`"""
        if not self.done:
            return "starting"
        parts = [f"{self.pictures_per_s:.0f} pictures/s", f"{self.bytes_per_s / 1e6:.1f} MB/s", summary(self.outcomes), _workers(self.workers)]
        return ", ".join(([f"ETA {duration(self.eta_s)}"] if self.eta_s is not None else []) + parts)

    def save(self, run_folder: Path) -> None:
        """Write it whole or not at all; `updated` lets a reader see that nobody writes any more."""
        done, success = self.done, self.outcomes.get(Outcome.SUCCESS, 0)
        record = {
            **vars(self),
            "updated": datetime.now(UTC).isoformat(timespec="seconds"),
            "done": done,
            "to_go": self.to_go,
            "success_percent": round(100 * success / done, 2) if done else None,
            "top_failures": dict(failures(self.outcomes).most_common(TOP_FAILURES)),
        }
        with contextlib.suppress(DataError, OSError):  # a full disk must not end what may still go on elsewhere
            storage.write_bytes(str(run_folder / FILE), (json.dumps(record, indent=1) + "\n").encode(), durable=False)


def failures(outcomes: Mapping[str, int]) -> Counter[str]:
    return Counter({name: number for name, number in outcomes.items() if name != Outcome.SUCCESS})


def summary(outcomes: Mapping[str, int]) -> str:
    """`97.2 % success, timeout 12, http_404 9`"""
    total = sum(outcomes.values())
    if not total:
        return "starting"
    ranked = failures(outcomes).most_common()
    parts = [f"{name} {number}" for name, number in ranked[:TOP_FAILURES]]
    if rest := sum(number for _, number in ranked[TOP_FAILURES:]):
        parts.append(f"other {rest}")
    return ", ".join([f"{100 * outcomes.get(Outcome.SUCCESS, 0) / total:.1f} % success", *parts])


def duration(seconds: float) -> str:
    """`2 d 3 h`, `1 h 20 min`, `12 min`, `40 s`: two units at most."""
    minutes = round(seconds / 60)
    if minutes >= 24 * 60:
        return f"{minutes // (24 * 60)} d {minutes // 60 % 24} h"
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min" if seconds >= 60 else f"{seconds:.0f} s"


def _workers(number: int) -> str:
    return f"{number} worker{'' if number == 1 else 's'}"
