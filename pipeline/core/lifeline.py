"""Tie a worker's life to its parent's: a killed run leaves nobody behind who still writes."""

import ctypes
import functools
import os
import signal
import sys
import threading
import time

PR_SET_PDEATHSIG = 1  # linux/prctl.h
LOOK_EVERY_S = 1.0


@functools.cache  # once a process, however many shards it works on
def die_with(parent_pid: int) -> None:
    """End this process when its parent `parent_pid` dies, however that happens; at once if it is dead already.

    On Linux the kernel does it; a thread looks as well, for other systems and because the kernel forgets it when the
    thread of the parent that started this process ends.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    _end_if_orphaned(parent_pid)
    threading.Thread(target=_watch, args=(parent_pid,), name="lifeline", daemon=True).start()


def _watch(parent_pid: int) -> None:
    while True:
        time.sleep(LOOK_EVERY_S)
        _end_if_orphaned(parent_pid)


def _end_if_orphaned(parent_pid: int) -> None:
    if os.getppid() != parent_pid:
        os._exit(1)
