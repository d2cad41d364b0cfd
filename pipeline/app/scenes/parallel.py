"""Work spread over processes that end with their parent, with a progress bar."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TypeVar

import cv2
from rich.progress import Progress

from pipeline.core.logs import console
from pipeline.core.stopping import raise_if_stopping

T = TypeVar("T")
R = TypeVar("R")


def as_finished(function: Callable[[T], R], tasks: Sequence[T], processes: int, description: str) -> Iterator[tuple[int, R]]:
    """Yield (place of the task, its result) in the order they finish.

    Raises Stopped between tasks when a signal came.
    """
    context = multiprocessing.get_context("spawn")  # not forked: the caller may run threads
    workers = min(processes, len(tasks))
    with Progress(console=console, transient=True) as progress, ProcessPoolExecutor(workers, context, initializer=_die_with_parent) as pool:
        futures = {pool.submit(function, task): place for place, task in enumerate(tasks)}
        try:
            for future in progress.track(as_completed(futures), total=len(tasks), description=description):
                yield futures[future], future.result()
                raise_if_stopping(None)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _die_with_parent() -> None:
    """A pool's process outlives a killed parent, waiting for work for ever; this one does not."""
    cv2.setNumThreads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
