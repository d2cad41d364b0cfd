"""The same function for many shards at once, in processes: walking tars and S3's client both hold the interpreter's lock."""

import contextlib
import errno
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from pipeline.core import lifeline, logs, stopping
from pipeline.core.errors import Stopped, StorageUnreachable

T = TypeVar("T")
R = TypeVar("R")

Progress = Callable[[str, int, int], None]  # what is being done, bytes of it done, bytes in all

MOST_BY_DEFAULT = 16
WORTH_A_PROCESS = 64 * 2**20  # bytes: less is done before processes have started
LOOK_EVERY_S = 0.5


def no_progress(_what: str, _done: int, _total: int) -> None:
    """For callers that show none."""


def fitting_workers(size: int) -> int:
    """For that many bytes: as many processes as this one may use cores of, and at most 16, since each holds some hundred megabytes."""
    return min(MOST_BY_DEFAULT, len(os.sched_getaffinity(0))) if size >= WORTH_A_PROCESS else 1


def spread(function: Callable[[T], R], items: Sequence[T], workers: int | None, size: int) -> Iterator[tuple[T, R]]:
    """`(item, function(item))` as they get ready, which is not their order; with one worker, in order and in this process.

    `size` is how many bytes of work it is; without `workers` their number is what fits it.

    Raises:
        Stopped: a signal came, or a worker was killed; what was begun is finished first.
        whatever `function` raised
    """
    workers = workers or fitting_workers(size)
    if workers == 1 or len(items) < 2:
        for item in items:
            stopping.raise_if_stopping(None)
            yield item, function(item)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy the S3 client's thread half
    with ProcessPoolExecutor(min(workers, len(items)), context, _start, (os.getpid(),)) as pool:
        waiting = {pool.submit(function, item): item for item in items}
        try:
            while waiting:
                stopping.raise_if_stopping(None)
                done, _ = wait(waiting, LOOK_EVERY_S, FIRST_COMPLETED)
                for future in done:
                    yield waiting.pop(future), future.result()
        except BrokenProcessPool as error:
            raise Stopped("a worker process was killed, perhaps for want of memory; run the same command again, with fewer --workers") from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _start(parent_pid: int) -> None:
    lifeline.die_with(parent_pid)
    logs.configure()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):  # the parent decides; it tells by handing out no more work
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def resumable(keeps_work: bool = True) -> Iterator[None]:
    """What may pass ends in exit code 4: the same command goes on, or begins again where no work is kept."""
    from_here = ", which goes on from here" if keeps_work else ""
    try:
        yield
    except StorageUnreachable as error:
        raise Stopped(f"{error}; then run the same command again{from_here}") from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise Stopped(f"the disk is full ({error}); make room and run the same command again{from_here}") from error
