"""Start the same command once per rank with DeepSpeed's launcher."""

import os
import subprocess
import sys

MODULE = "pipeline.app"


def launch_ranks(processes: int, arguments: list[str]) -> int:
    """Run `albef ARGUMENTS` as `processes` ranks on this machine and wait; returns the launcher's exit code.

    A rank's exit code of ours (2, 3, 4) comes back as it is.
    """
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", str(processes), "--master_port", str(_free_port())]
    command = [*launcher, "--no_local_rank", "--module", MODULE, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    return subprocess.run(command, env=environment, check=False).returncode


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
