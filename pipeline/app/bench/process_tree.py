"""The CPU seconds of a command and of every process it starts, also of those whose parent died first and waited for nobody.

`python -m pipeline.app.bench.process_tree REPORT COMMAND...` becomes the parent of all orphans below it, so that the kernel adds their seconds to its
children's; a process of its own, whose children nobody else's are.
"""

import contextlib
import ctypes
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from pipeline.core.errors import AlbefError

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
ORPHANS_WAIT_S = 10.0
LOG_TAIL_CHARACTERS = 2000


def cpu_seconds(command: Sequence[str], environment: Mapping[str, str], folder: Path) -> float:
    """User and system seconds of `command`, run to its end in `folder`, where its output lands in log.txt.

    Raises:
        AlbefError: it failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    report, log = folder / "usage.json", folder / "log.txt"
    with log.open("wb") as output:
        wrapped = [sys.executable, "-m", "pipeline.app.bench.process_tree", str(report), *command]
        subprocess.run(wrapped, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=False)
    if not report.exists() or (usage := json.loads(report.read_text()))["returncode"] != 0:
        raise AlbefError(f"the benchmark's command failed: {' '.join(command)}\n{log.read_text(errors='replace')[-LOG_TAIL_CHARACTERS:]}")
    return float(usage["cpu_s"])


def main(report: str, command: Sequence[str]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")
    returncode = subprocess.Popen(command).wait()
    _reap_orphans()
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    Path(report).write_text(json.dumps({"returncode": returncode, "cpu_s": spent.ru_utime + spent.ru_stime}))


def _reap_orphans() -> None:
    deadline = time.monotonic() + ORPHANS_WAIT_S
    with contextlib.suppress(ChildProcessError):  # until there is none
        while True:
            reaped, _ = os.waitpid(-1, os.WNOHANG)
            if not reaped:
                time.sleep(0.05)
                for orphan in psutil.Process().children() if time.monotonic() > deadline else []:
                    orphan.kill()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
