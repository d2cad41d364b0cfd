"""What a piece of work takes: wall and CPU seconds, and memory, of this process and all it starts."""

import contextlib
import resource
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import psutil

SAMPLE_EVERY_S = 0.1
T = TypeVar("T")


@dataclass(frozen=True)
class Usage:
    """`peak_rss_bytes` is the largest sum over the process and its descendants at one moment, sampled ten times a second."""

    wall_s: float
    cpu_s: float
    peak_rss_bytes: int


def measured(work: Callable[[], T]) -> tuple[T, Usage]:
    """The work's result and what it took. CPU seconds of children count once they have ended and were waited for."""
    process, done = psutil.Process(), threading.Event()
    peak = [_rss(process)]

    def watch() -> None:
        while not done.wait(SAMPLE_EVERY_S):
            peak[0] = max(peak[0], _rss(process))

    watcher = threading.Thread(target=watch, daemon=True)
    wall, cpu = time.monotonic(), _cpu(process)
    watcher.start()
    try:
        result = work()
    finally:
        done.set()
        watcher.join()
    return result, Usage(time.monotonic() - wall, _cpu(process) - cpu, max(peak[0], _rss(process)))


def cpu_seconds_of(work: Callable[[], T]) -> tuple[T, float]:
    """The work's result, and the CPU seconds of this process and of those children that ended meanwhile; nothing runs beside it, so also for short works."""
    before = cpu_seconds()
    result = work()
    return result, cpu_seconds() - before


def cpu_seconds() -> float:
    """Of this process since it began, all its threads included, and of those children that ended; differences of it are what work between took."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _rss(process: psutil.Process) -> int:
    total = 0
    for one in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += one.memory_info().rss
    return total


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)
