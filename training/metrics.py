"""What a run reports: every step in metrics.jsonl; the first, every few and the last in the log and in tensorboard."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from training.patient_file import PatientFile
from training.tensorboard_file import TensorBoardFile

log = logging.getLogger(__name__)


class Metrics:
    """Rank 0's record of a run; lines of steps after `resume_step` are dropped, since those steps will be taken again."""

    def __init__(self, folder: Path, resume_step: int, total_steps: int, log_every_steps: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._log_every_steps, self._ends = log_every_steps, {resume_step + 1, total_steps}
        self._lines = _truncated(folder / "metrics.jsonl", resume_step)
        self._board = TensorBoardFile(folder / "tensorboard", first_step=resume_step + 1)

    def record(self, step: int, values: dict[str, float], ranks: Sequence[dict[str, float]] = ()) -> None:
        """Values after optimizer step `step`, names like loss/itc, val/image_recall@1; `ranks` has the loader's figures of each rank."""
        line = json.dumps({"step": step, **values, **({"ranks": ranks} if ranks else {})}) + "\n"
        self._lines.write(line.encode())  # at once: a checkpoint may follow, and a resumed run relies on the lines up to it
        if step in self._ends or step % self._log_every_steps == 0 or any(name.startswith("val/") for name in values):
            self._board.add(step, values)
            log.info("step %d  %s", step, "  ".join(f"{name.removeprefix('loss/')} {value:.4g}" for name, value in values.items() if _shown(name)))

    def settle(self) -> None:
        """Raises OSError while a line is not on disk; any thread may call."""
        self._lines.settle()

    def close(self) -> None:
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


def _truncated(path: Path, last_step: int) -> PatientFile:
    steps, kept, again = set(), [], set()
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            step = json.loads(line)["step"]
        except ValueError:  # the line a killed process did not finish
            continue
        if step > last_step:
            again.add(step)
        else:
            steps.add(step)
            kept.append(line + "\n")
    if again:
        log.info("%d steps after step %d are taken again: no checkpoint has them", len(again), last_step)
    if len(steps) < last_step:
        log.warning(
            "%s: %d of the %d steps taken so far have no line: they were taken with another run.folder, or lines were removed",
            path,
            last_step - len(steps),
            last_step,
        )
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept))
    temporary.replace(path)
    return PatientFile(path)
