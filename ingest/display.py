"""What the operator sees while ingest runs: a live line on a terminal, and a line in the log every ten seconds."""

import logging
import time
from collections import Counter
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ingest.outcomes import Outcome
from pipeline.core.logs import console

log = logging.getLogger(__name__)

LOG_EVERY_S = 10.0
TOP_FAILURES = 3


class Display:
    """Pictures done, success rate, speed and the most frequent failures."""

    def __init__(self, total: int, done_before: int) -> None:
        self.total, self.done_before = total, done_before
        self._started = self._logged = time.monotonic()
        self._live = Progress(
            TextColumn("ingest"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"), console=console, transient=True
        )
        self._task = self._live.add_task("starting", total=total, completed=done_before)

    def __enter__(self) -> "Display":
        if console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._live.stop()

    def update(self, outcomes: Counter[str]) -> None:
        """`outcomes` counts every row that is done, those of earlier starts included."""
        done, now = outcomes.total(), time.monotonic()
        text = summary(outcomes)
        if done > self.done_before:
            text = f"{(done - self.done_before) / (now - self._started):.0f} pictures/s, {text}"
        self._live.update(self._task, completed=done, description=text)
        if now - self._logged >= LOG_EVERY_S:
            self._logged = now
            log.info("ingest: %d of %d rows, %s", done, self.total, text)


def summary(outcomes: Counter[str]) -> str:
    """`97.2 % success, timeout 12, http_404 9`"""
    if not outcomes.total():
        return "starting"
    failures = Counter({name: number for name, number in outcomes.items() if name != Outcome.SUCCESS})
    parts = [f"{100 * outcomes[Outcome.SUCCESS.value] / outcomes.total():.1f} % success"]
    return ", ".join(parts + [f"{name} {number}" for name, number in failures.most_common(TOP_FAILURES)])
