"""Start the same command once per rank with DeepSpeed's launcher."""

import contextlib
import os
import signal
import subprocess
import sys

import psutil

from pipeline.core import stopping
from pipeline.core.loopback import free_port

MODULE = "pipeline.app"


def launch_ranks(processes: int, arguments: list[str]) -> int:
    """Run `albef ARGUMENTS` as `processes` ranks on this machine and wait; returns the launcher's exit code.

    A rank's exit code of ours (2, 3, 4) comes back as it is.
    """
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", str(processes), "--master_port", str(free_port())]
    command = [*launcher, "--no_local_rank", "--module", MODULE, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    process = subprocess.Popen(command, env=environment)
    passed_on = False
    while True:
        try:
            return process.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            if not passed_on and stopping.stop_reason(None) is not None:
                passed_on = _ask_ranks_to_stop(process.pid)


def _ask_ranks_to_stop(launcher_pid: int) -> bool:
    """SIGTERM to the ranks alone: DeepSpeed's launcher would kill them at once instead of letting them save. False while there are none."""
    told = False
    for process in psutil.Process(launcher_pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended, by itself
            if not process.children() and "deepspeed.launcher.launch" not in process.cmdline():
                process.send_signal(signal.SIGTERM)
                told = True
    return told
