"""Notice that a rank makes no progress any more, leave behind what people need to find out why, and end it where they asked for that."""

import contextlib
import faulthandler
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from pipeline.core.errors import Stopped
from training.watch import hang_report, stacks
from training.watch.heartbeat import Beat, Heartbeat

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
LONGEST_LOOK = 10  # looks; more time between two of them was not spent here: the whole process was stopped or suspended, which is no hang
LONGEST_PATIENCE_S = 30.0  # that ranks are given to write their stacks before the report is made
LAST_WORDS_S = 5.0  # that the log is given before the process ends


class HangWatch:
    """A daemon thread that looks at this rank's own heartbeat.

    When it has not moved for `report_after_s`, the stacks of all threads are written to `<train_folder>/hang/step-0000123/rank-00003.txt`, and rank 0 (or
    rank 1, where rank 0 does not come to it) writes `report.txt` beside them and logs one line that names the suspects; once a hang, and again only after
    progress. After `exit_after_s` without progress the process ends with exit code 4, so that whoever started it can go on from the last checkpoint.
    Time in which the process itself was stopped does not count.

    Code that never gives the interpreter back stops this thread, too: then `faulthandler`, which needs no interpreter, writes to
    `hang/dump-rank-00003.txt`. Such a process ends only with the other ranks of its job.
    """

    def __init__(self, heartbeat: Heartbeat, train_folder: Path, rank: int, world_size: int, report_after_s: float, exit_after_s: float | None = None) -> None:
        assert exit_after_s is None or exit_after_s > report_after_s, "it would end before it has reported"
        self._heartbeat, self._folder, self._rank, self._world_size = heartbeat, train_folder, rank, world_size
        self._report_after_s, self._exit_after_s = report_after_s, exit_after_s
        self._reported: Beat | None = None
        self._closed = threading.Event()
        self._dump = self._opened_dump()
        self._put_off_dump()
        self._thread = threading.Thread(target=self._watch, name="hang watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        self._thread.join(timeout=10)
        if self._dump:
            faulthandler.cancel_dump_traceback_later()
            self._dump.close()
            with contextlib.suppress(OSError):
                self._remove_empty_dump()

    def _watch(self) -> None:
        look_every_s = min(LOOK_EVERY_S, self._report_after_s / 20)
        seen, silent_s, looked_at = self._heartbeat.last, 0.0, time.monotonic()
        while not self._closed.wait(look_every_s):
            self._put_off_dump()
            last, now = self._heartbeat.last, time.monotonic()
            silent_s = silent_s + min(now - looked_at, LONGEST_LOOK * look_every_s) if last == seen else 0.0
            seen, looked_at = last, now
            if self._exit_after_s is not None and silent_s >= self._exit_after_s:
                self._end(silent_s, last)
            if self._reported and last != self._reported:
                log.info("rank %d goes on: phase %s after step %d", self._rank, last.phase, last.step)
                self._reported = None
            if silent_s >= self._report_after_s and last != self._reported:
                self._reported = last
                threading.Thread(
                    target=self._report, args=(last, silent_s), name="hang report", daemon=True
                ).start()  # a disk that hangs must not stop the watch

    def _report(self, last: Beat, silent_s: float) -> None:
        try:
            self._write_report(last, silent_s)
        except OSError as error:
            log.warning("hang: no progress for %.0f s, and the report cannot be written: %s", silent_s, error)

    def _write_report(self, last: Beat, silent_s: float) -> None:
        stacks.write(hang_report.stacks_path(self._folder, last), last, silent_s)
        if self._rank > 1:
            return
        path = hang_report.hang_folder(self._folder, last.step) / "report.txt"
        patience_s = min(LONGEST_PATIENCE_S, self._report_after_s / 2)
        self._wait_while(lambda: any(state.stacks is None for state in hang_report.look_at(self._folder, self._world_size)), patience_s)
        if self._rank == 1:
            self._wait_while(lambda: not self._told_by_first(last), patience_s)
            if self._told_by_first(last):
                return
        if self._closed.is_set():
            return
        states = hang_report.look_at(self._folder, self._world_size)
        suspected = hang_report.suspicion(states, self._report_after_s)
        path.write_text(hang_report.text(states, suspected))
        log.error("%s", hang_report.line(states, suspected, path))

    def _told_by_first(self, last: Beat) -> bool:
        """Whether rank 0 has written a report since this rank made its last progress; it may stand one step elsewhere."""
        reports = (self._folder / "hang").glob("step-*/report.txt")
        return any(last.age_s(report.stat().st_mtime) > 0 for report in reports)

    def _wait_while(self, condition: Callable[[], bool], longest_s: float) -> None:
        deadline = time.monotonic() + longest_s
        while time.monotonic() < deadline and condition() and not self._closed.wait(longest_s / 20):
            pass

    def _end(self, silent_s: float, last: Beat) -> None:
        where = f"phase {last.phase} after step {last.step}"
        words = f"rank {self._rank} ends after {silent_s:.0f} s without progress ({where}); the same command goes on from the last checkpoint"
        speaker = threading.Thread(target=log.critical, args=("%s", words), daemon=True)
        speaker.start()
        speaker.join(LAST_WORDS_S)  # a log on a disk that hangs must not keep the process alive
        os._exit(Stopped.exit_code)  # no clean-up: it would wait for the same thing

    def _put_off_dump(self) -> None:
        """For as long as this thread gets to run."""
        if self._dump:
            faulthandler.dump_traceback_later(self._report_after_s, file=self._dump)

    def _remove_empty_dump(self) -> None:
        path = hang_report.dump_path(self._folder, self._rank)
        if path.stat().st_size == 0:
            path.unlink()
            path.parent.rmdir()  # by the last rank; elsewhere it is not empty

    def _opened_dump(self) -> IO[bytes] | None:
        path = hang_report.dump_path(self._folder, self._rank)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return path.open("ab")
        except OSError as error:
            log.warning("%s: cannot be written (%s); a rank that hangs in C code will leave no stacks", path, error)
            return None
