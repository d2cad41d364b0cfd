"""What the operator sees while ingest runs: a live line on a terminal, a line in the log every ten seconds, and `status.json` for a dashboard."""

import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Column

from ingest.progress import ShardProgress
from ingest.speed import Speed
from ingest.status import Status
from pipeline.core.logs import console

log = logging.getLogger(__name__)

LOG_EVERY_S = 10.0
SAVE_EVERY_S = 2.0


class Display:
    """Open from the first start of the engine to the end of the last; leaving it says how ingest ended."""

    def __init__(self, total: int, done_before: Counter[str], run_folder: Path) -> None:
        self.status = Status("running", total, done_before)
        self._run_folder, self._speed = run_folder, Speed()
        self._logged, self._saved = time.monotonic(), -SAVE_EVERY_S
        line = TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis"))
        self._live = Progress(TextColumn("ingest"), BarColumn(20), MofNCompleteColumn(), line, console=console, transient=True)
        self._task = self._live.add_task("starting", total=total, completed=self.status.done)

    def __enter__(self) -> "Display":
        self.status.save(self._run_folder)
        if console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._live.stop()
        over = replace(self.status, state="finished" if error is None else "stopped", workers=0, eta_s=None, reason=str(error) if error is not None else None)
        over.save(self._run_folder)

    def update(self, published: Counter[str], shards: Sequence[ShardProgress]) -> None:
        """`published` counts the rows of shards that were done when the engine started; `shards` are those in work since, or through."""
        now = time.monotonic()
        outcomes = sum((shard.outcomes for shard in shards), published.copy())
        fetched = outcomes.total() - published.total() - sum(shard.resumed for shard in shards)
        self._speed.observe(now, fetched, sum(shard.bytes for shard in shards))
        to_go = self.status.total - outcomes.total()
        self.status = replace(
            self.status,
            outcomes=outcomes,
            pictures_per_s=self._speed.rows_per_s(),
            bytes_per_s=self._speed.bytes_per_s(),
            eta_s=self._speed.seconds_for(to_go),
            workers=sum(shard.worker is not None for shard in shards),
        )
        self._show(now)

    def finish(self, outcomes: Counter[str]) -> None:
        """Every row has its outcome: the last look at the workers may have been before that."""
        self.status = replace(self.status, outcomes=outcomes)

    def _show(self, now: float) -> None:
        line = self.status.line()
        self._live.update(self._task, completed=self.status.done, description=line)
        if now - self._saved >= SAVE_EVERY_S:
            self._saved = now
            self.status.save(self._run_folder)
        if now - self._logged >= LOG_EVERY_S:
            self._logged = now
            log.info("ingest: %d of %d rows, %s", self.status.done, self.status.total, line)
