"""A Slurm cluster of two nodes on this machine, its daemons children of the test's own process."""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from waiting import wait_until

from pipeline.core.loopback import free_port

CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CryptoType=crypto/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
KillWait=30
JobRequeue=1
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={port_1} CPUs=1 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={port_2} CPUs=1 State=UNKNOWN
PartitionName=debug Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP
"""
MISSING = [program for program in ("munged", "slurmctld", "slurmd", "sbatch") if not shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin")]


@dataclass(frozen=True)
class Cluster:
    """Whose commands run with `environment`."""

    environment: dict[str, str]

    def ask(self, *command: object) -> str:
        done = subprocess.run([str(word) for word in command], env=self.environment, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """JobState, Restarts and the rest of what `scontrol show job` says."""
        return dict(part.split("=", 1) for part in self.ask("scontrol", "show", "job", number).split() if "=" in part)


@contextlib.contextmanager
def slurm_cluster() -> Iterator[Cluster]:
    """Jobs and daemons end with the block."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # a short path: a socket's may have 107 characters
    for name in ("state", "spool/n1", "spool/n2"):
        (folder / name).mkdir(parents=True)
    host, environment = (
        socket.gethostname().partition(".")[0],
        {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin", "SLURM_CONF": str(folder / "slurm.conf")},
    )
    (folder / "slurm.conf").write_text(CONFIGURATION.format(folder=folder, host=host, port=free_port(), port_1=free_port(), port_2=free_port()))
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o600)
    cluster = Cluster(environment)
    files = [f"--{name}={folder}/munge.{name.partition('-')[0]}" for name in ("socket", "key-file", "pid-file", "log-file", "seed-file")]
    with contextlib.ExitStack() as daemons:
        daemons.callback(shutil.rmtree, folder, ignore_errors=True)
        for command in (["munged", "--foreground", "--force", *files], ["slurmctld", "-D", "-i"], ["slurmd", "-D", "-N", "n1"], ["slurmd", "-D", "-N", "n2"]):
            daemons.enter_context(_daemon(command, environment))
            if command[0] == "munged":
                wait_until((folder / "munge.socket").exists)
        wait_until(lambda: _idle_nodes(cluster) == 2)
        daemons.callback(_end_jobs, cluster)
        yield cluster


@contextlib.contextmanager
def _daemon(command: list[str], environment: dict[str, str]) -> Iterator[None]:
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.kill()
        process.wait()


def _idle_nodes(cluster: Cluster) -> int:
    found = subprocess.run(["sinfo", "--noheader", "--Node", "--format=%T"], env=cluster.environment, capture_output=True, text=True, check=False)
    return found.stdout.split().count("idle")


def _end_jobs(cluster: Cluster) -> None:
    cluster.ask("scancel", "--signal=KILL", "--full", "--user=root")
    cluster.ask("scancel", "--user=root")
    deadline = time.monotonic() + 60
    while cluster.ask("squeue", "--noheader") and time.monotonic() < deadline:
        time.sleep(0.2)
