"""A training run in processes of its own, one a rank, that tests kill, stop and start again, and what it came to in the end."""

import contextlib
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tiny_run

from pipeline.core.loopback import free_port
from training import checkpoint
from training.checkpoint.layout import complete, folders, latest_of

IMPATIENT_S3 = {"config_kwargs": {"read_timeout": 3, "retries": {"total_max_attempts": 3, "mode": "standard"}}}  # a stall costs 3 s, not 60
Ranks = list["subprocess.Popen[bytes]"]


@dataclass(frozen=True)
class Finished:
    """What a run came to: every step's figures, and of the last checkpoint its state and the sha256 of each file, thus of all tensors."""

    figures: list[dict[str, float]]
    state: dict[str, Any]
    files: dict[str, str]


@dataclass
class Run:
    """A run directory whose training is started and killed again and again."""

    folder: Path
    checkpoints: str
    config: Path
    ranks: int
    environment: dict[str, str]

    @contextlib.contextmanager
    def living(self) -> Iterator[Ranks]:
        """`albef train` as one process a rank, as srun starts it; nothing of it outlives the block."""
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(self.ranks), "LOCAL_SIZE": str(self.ranks)}
        processes: Ranks = []
        for rank in range(self.ranks):
            own = {**place, "RANK": str(rank), "LOCAL_RANK": str(rank), "GLOO_SOCKET_IFNAME": "lo"} if self.ranks > 1 else {}
            with (self.folder / f"output-{rank}.txt").open("ab") as output:
                processes.append(
                    subprocess.Popen(tiny_run.command(self.config), env={**tiny_run.environment(), **self.environment, **own}, stdout=output, stderr=output)
                )
        try:
            yield processes
        finally:
            for process in processes:
                process.kill()
                process.wait()

    def finish(self, timeout_s: float = 600) -> float:
        """Let it come to its end; the seconds after which its first checkpoint was there."""
        began = time.monotonic()
        with self.living() as ranks:
            wait_for(ranks, lambda: self.latest() > 0)
            first_checkpoint_s = time.monotonic() - began
            codes = [process.wait(timeout_s) for process in ranks]
        assert not any(codes), "\n".join((self.folder / f"output-{rank}.txt").read_text()[-2000:] for rank in range(self.ranks))
        return first_checkpoint_s

    def log_size(self) -> int:
        return (self.folder / "log.txt").stat().st_size if (self.folder / "log.txt").exists() else 0

    def metrics_file(self) -> int | None:
        """Which one it is: a start replaces it before its first step."""
        path = self.folder / "train" / "metrics.jsonl"
        return path.stat().st_ino if path.exists() else None

    def steps_recorded(self) -> int:
        lines = (self.folder / "train" / "metrics.jsonl").read_text().split("\n")[:-1]
        return int(json.loads(lines[-1])["step"]) if lines else 0

    def latest(self) -> int:
        name = latest_of(self.checkpoints)
        return int(name.removeprefix("step-")) if name else 0

    def half_done(self) -> bool:
        """Files of a checkpoint are there, and its manifest is not."""
        return folders(self.checkpoints) != complete(self.checkpoints)

    def is_finished(self) -> bool:
        return (self.folder / "stages" / "train.json").exists()

    def finished(self) -> Finished:
        found = checkpoint.read(self.checkpoints)
        files = {file.rpartition("/")[2]: about["sha256"] for file, about in found.manifest["files"].items()}
        state = {name: value for name, value in found.state.items() if name != "sources"}  # bytes that this process has read
        return Finished(tiny_run.metrics(self.folder), state, files)


def wait_for(ranks: Ranks, condition: Callable[[], bool]) -> None:
    """For a condition, or for the end of a rank."""
    deadline = time.monotonic() + 300
    while not condition() and all(process.poll() is None for process in ranks):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)
