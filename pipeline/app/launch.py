"""Start the same command once per rank with DeepSpeed's launcher."""

import os
import subprocess
import sys

from pipeline.core.loopback import free_port

MODULE = "pipeline.app"


def launch_ranks(processes: int, arguments: list[str]) -> int:
    """Run `albef ARGUMENTS` as `processes` ranks on this machine and wait; returns the launcher's exit code.

    A rank's exit code of ours (2, 3, 4) comes back as it is.
    """
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", str(processes), "--master_port", str(free_port())]
    command = [*launcher, "--no_local_rank", "--module", MODULE, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    return subprocess.run(command, env=environment, check=False).returncode
