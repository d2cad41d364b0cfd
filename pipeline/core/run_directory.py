"""The run directory: the resolved configuration, one completion marker a stage, logs, metrics and checkpoints of one run.

config.yaml              the resolved configuration
stages/<stage>.json      written when a stage is finished: fingerprint of its configuration, result, seconds
<stage>/                 whatever the stage keeps: metrics.jsonl, checkpoints, tables
log.txt                  every log line of every stage
lock                     held while a command works here
"""

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core import storage
from pipeline.core.errors import UserError


@dataclass(frozen=True)
class RunDirectory:
    """A local folder; large data sets and checkpoints may live elsewhere, the run's own record is here."""

    path: Path

    def folder(self, stage: str) -> Path:
        """The stage's own folder, created on first use."""
        folder = self.path / stage
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def result(self, stage: str) -> dict[str, Any] | None:
        """What the finished stage wrote, or None when it is not finished.

        Raises UserError when the record is damaged.
        """
        marker = self.path / "stages" / f"{stage}.json"
        if not marker.exists():
            return None
        try:
            record = json.loads(marker.read_bytes())
        except ValueError as error:
            raise _damaged(marker, str(error)) from None
        if not isinstance(record, dict) or not {"fingerprint", "seconds", "result"} <= record.keys():
            raise _damaged(marker, "fingerprint, seconds or result are missing")
        return record

    def finish(self, stage: str, fingerprint: str, result: dict[str, Any], seconds: float) -> None:
        """Mark a stage finished; `fingerprint` says with which configuration and inputs."""
        record = {"stage": stage, "fingerprint": fingerprint, "seconds": round(seconds, 1), "result": result}
        storage.write_bytes(str(self.path / "stages" / f"{stage}.json"), json.dumps(record, indent=1).encode())

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory for this process; the kernel drops the lock when the process dies, however it dies."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise UserError(f"{self.path}: in use by process {file.read().strip() or '?'}; wait for it or stop it first") from None
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield


def _damaged(marker: Path, what: str) -> UserError:
    return UserError(f"{marker}: the record of a finished stage is damaged ({what}); delete it, and the stage takes up what it finds and writes it anew")


def rank() -> int:
    """This process's rank as its launcher says it (deepspeed, torchrun, srun); 0 without one."""
    return int(os.environ.get("RANK") or (os.environ.get("SLURM_PROCID") if "SLURM_STEP_ID" in os.environ else None) or 0)


def fingerprint(value: Any) -> str:
    """A short stable hash of a JSON-like value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]
