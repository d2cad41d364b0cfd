"""What a run reports: every step in metrics.jsonl; the first, every few and the last in the log and in tensorboard."""

import io
import json
import logging
from collections.abc import Sequence
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger(__name__)


class Metrics:
    """Rank 0's record of a run; lines of steps after `resume_step` are dropped, since those steps will be taken again."""

    def __init__(self, folder: Path, resume_step: int, total_steps: int, log_every_steps: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._log_every_steps, self._ends = log_every_steps, {resume_step + 1, total_steps}
        self._lines = _truncated(folder / "metrics.jsonl", resume_step)
        self._waiting = b""  # what a full disk did not take yet
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=resume_step + 1)

    def record(self, step: int, values: dict[str, float], ranks: Sequence[dict[str, float]] = ()) -> None:
        """Values after optimizer step `step`, names like loss/itc, val/image_recall@1; `ranks` has the loader's figures of each rank."""
        self._write(json.dumps({"step": step, **values, **({"ranks": ranks} if ranks else {})}) + "\n")
        if step in self._ends or step % self._log_every_steps == 0 or any(name.startswith("val/") for name in values):
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
            log.info("step %d  %s", step, "  ".join(f"{name.removeprefix('loss/')} {value:.4g}" for name, value in values.items() if _shown(name)))

    def _write(self, line: str) -> None:
        """At once: a checkpoint may follow, and a resumed run relies on the lines up to it. What the disk does not take is written with the next line."""
        full = bool(self._waiting)
        self._waiting += line.encode()
        try:
            while self._waiting:
                self._waiting = self._waiting[self._lines.write(self._waiting) :]
        except OSError as error:
            if not full:
                log.warning("%s: %s; training goes on, and the lines will follow when they can be written", self._lines.name, error.strerror)

    def close(self) -> None:
        self._write("")
        self._lines.close()
        self._board.close()


def _shown(name: str) -> bool:
    return name.startswith(("loss/", "val/")) or name in {
        "lr",
        "alpha",
        "grad_norm",
        "pairs_per_s",
        "tflops",
        "mfu",
        "data_wait_s",
        "skipped_steps",
        "data/wait_p50_s",
        "data/wait_p99_s",
        "data/wait_share",
    }


def _truncated(path: Path, last_step: int) -> io.FileIO:
    kept = []
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                if json.loads(line)["step"] <= last_step:
                    kept.append(line)
            except ValueError:  # the line a killed process did not finish
                continue
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(line + "\n" for line in kept))
    temporary.replace(path)
    return io.FileIO(path, "a")  # without a buffer that would keep what could not be written
