"""Logging to the terminal and to the run directory, one format everywhere."""

import logging
import sys
from pathlib import Path

from rich.console import Console
from rich.logging import RichHandler

console = Console(stderr=True)


def configure(run_folder: Path | None = None, rank: int = 0) -> None:
    """Send the log to the terminal (rank 0 alone) and, with a run directory, to its log.txt; called once by a command."""
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    root.handlers = []
    if rank == 0:
        root.addHandler(_terminal())
    if run_folder is not None:
        from pipeline.core import storage  # fsspec, which help can do without

        storage.make_folder(str(run_folder))
        file = _RunLog(run_folder / ("log.txt" if rank == 0 else f"log-rank{rank}.txt"))
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        root.addHandler(file)
    for noisy in ("botocore", "aiobotocore", "urllib3", "fsspec", "s3fs", "matplotlib", "PIL"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


class _RunLog(logging.FileHandler):
    """Says once, and not with a traceback for every line, that a full disk does not take them."""

    _refused = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._refused:
            self._refused = True
            sys.stderr.write(f"{self.baseFilename}: {error.strerror}; lines may be missing in it\n")


def _terminal() -> logging.Handler:
    """Coloured on a terminal; in a pipe or a file of Slurm's plain lines, which nothing folds at 80 columns."""
    if console.is_terminal:
        return RichHandler(console=console, show_path=False, show_level=False, omit_repeated_times=False, log_time_format="%H:%M:%S")
    plain = logging.StreamHandler()
    plain.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    return plain
