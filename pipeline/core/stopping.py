"""Stopping early without losing work: a signal or a `STOP` file sets a flag that stages look at between units of work."""

import signal
from pathlib import Path
from types import FrameType

from pipeline.core.errors import Stopped

_received: list[str] = []


def install_handlers() -> None:
    """Catch SIGTERM, SIGINT and SIGUSR1; called before torch is imported, since an early signal would otherwise kill the process."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, _remember)


def keep_exit_code() -> None:
    """Called when all is done: a signal that comes while the interpreter ends must not take the place of the exit code.

    `srun --kill-on-bad-exit` sends SIGTERM to all other ranks as soon as the first one has ended, be it with 4 as they will: killed by it
    they would make 143 of the step's code, and the job would not queue again. What hangs at its end is left to SIGKILL, or to Ctrl-C.
    """
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def _remember(number: int, _frame: FrameType | None) -> None:
    if _received and number == signal.SIGINT:  # a second Ctrl-C means now
        raise KeyboardInterrupt
    _received.append(signal.Signals(number).name)


def stop_reason(run_folder: Path | None) -> str | None:
    """Why the stage should stop now, or None."""
    if _received:
        return f"received {_received[0]}"
    if run_folder is not None and (run_folder / "STOP").exists():
        return f"found {run_folder / 'STOP'}"
    return None


def raise_if_stopping(run_folder: Path | None) -> None:
    """Raises Stopped (exit code 4) when a signal came or a STOP file lies in the run directory."""
    if reason := stop_reason(run_folder):
        raise Stopped(f"stopped early: {reason}; {how_to_continue(reason)}")


def how_to_continue(reason: str) -> str:
    """What to do about a reason to stop."""
    return ("remove the STOP file and " if "STOP" in reason else "") + "run the same command again to continue"
