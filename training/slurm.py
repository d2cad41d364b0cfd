"""A job step's own place in it, and where its rank 0 listens, as Slurm knows it."""

import re
import subprocess
from collections.abc import Mapping

from pipeline.core.errors import ConfigError
from pipeline.core.loopback import free_port

SCONTROL_S = 60.0  # a busy controller takes its time
PORTS = range(10000, 30000)  # below those that the kernel gives to outgoing connections


def place(environment: Mapping[str, str]) -> dict[str, str]:
    """RANK, LOCAL_RANK, WORLD_SIZE and LOCAL_SIZE of a task that `srun` started."""
    node = int(environment.get("SLURM_NODEID", "0"))
    return {
        "RANK": environment["SLURM_PROCID"],
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "WORLD_SIZE": environment["SLURM_NTASKS"],
        "LOCAL_SIZE": str(tasks_per_node(environment["SLURM_STEP_TASKS_PER_NODE"])[node]),
    }


def rendezvous(environment: Mapping[str, str]) -> dict[str, str]:
    """MASTER_ADDR and MASTER_PORT, the same for every task of the step: the address of its first node, and a port drawn from its number.

    The node's address, not its name: names of nodes need not resolve. A lone task, such as a shell that `srun --pty` started, meets nobody.

    Raises ConfigError where Slurm cannot be asked.
    """
    if environment["SLURM_NTASKS"] == "1":
        return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    first = _scontrol("show", "hostnames", environment["SLURM_STEP_NODELIST"]).split()[0]
    address = re.search(r"\bNodeAddr=(\S+)", _scontrol("show", "node", first))
    if not address:
        raise ConfigError(f"scontrol show node {first}: names no NodeAddr; set MASTER_ADDR and MASTER_PORT to where rank 0 may listen")
    number = 16 * int(environment["SLURM_JOB_ID"]) + int(environment["SLURM_STEP_ID"])
    return {"MASTER_ADDR": address[1], "MASTER_PORT": str(PORTS[number % len(PORTS)])}


def tasks_per_node(counts: str) -> list[int]:
    """Slurm's short form written out: 2(x3),1 -> [2, 2, 2, 1]."""
    parts = [re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part) for part in counts.split(",")]
    return [int(part[1]) for part in parts if part for _ in range(int(part[2] or 1))]


def _scontrol(*arguments: str) -> str:
    command = ["scontrol", *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=SCONTROL_S).stdout
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip()
        raise ConfigError(f"{' '.join(command)}: {said}; set MASTER_ADDR and MASTER_PORT to where rank 0 may listen") from None
