"""What every thread of this process is doing, as a file that people read and whose first line the hang report reads."""

import json
import sys
import threading
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from traceback import FrameSummary

from training.watch.heartbeat import Beat

CHECKOUT = Path(__file__).resolve().parents[2]
OUR_FOLDERS = tuple(f"{CHECKOUT / package}/" for package in ("pipeline", "ingest", "shards", "training", "eval"))
COLLECTIVE_FOLDERS = ("/torch/distributed/", "/deepspeed/comm/")
COLLECTIVE_DEPTH = 3  # innermost frames; further out lies what called the collective


@dataclass(frozen=True)
class Stacks:
    """Where the main thread of a rank was when it had made no progress for too long."""

    beat: Beat
    where: str  # its innermost frames in our code, the innermost first
    in_collective: bool  # it waits for other ranks


def write(path: Path, beat: Beat, silent_s: float) -> None:
    """Write the stacks of all threads of this process, the main one first, each with its innermost call last."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    main = threading.main_thread().ident
    of_threads = {ident: traceback.extract_stack(frame) for ident, frame in sys._current_frames().items()}
    found = Stacks(beat, _where(of_threads[main]), _in_collective(of_threads[main])) if main in of_threads else Stacks(beat, "no main thread", False)
    lines = [json.dumps(asdict(found)), f"rank {beat.rank}, process {beat.pid} on {beat.host}: no progress for {silent_s:.0f} s in phase {beat.phase}"]
    for ident in sorted(of_threads, key=lambda ident: ident != main):
        lines += ["", f"thread {names.get(ident, 'not of Python')} ({ident}), innermost call last:", *traceback.StackSummary(of_threads[ident]).format()]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text("\n".join(line.rstrip("\n") for line in lines) + "\n")
    temporary.replace(path)


def read(path: Path, beat: Beat) -> Stacks | None:
    """The stacks written in the silence that followed `beat`; None where there are none, or only those of an earlier one."""
    try:
        with path.open() as file:
            header = json.loads(file.readline())
        found = Stacks(Beat(**header["beat"]), header["where"], header["in_collective"])
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return found if found.beat == beat else None


def innermost_of_dump(path: Path) -> str:
    """Of the main thread in what `faulthandler` wrote last, the innermost frame in our code, or else of all.

    There the main thread comes last, and the innermost call of a thread first.
    """
    main = path.read_text(errors="replace").rpartition("Timeout (")[2].rpartition("hread 0x")[2]
    frames = [line.strip() for line in main.splitlines() if line.strip().startswith("File ")]
    of_ours = [frame for frame in frames if any(folder in frame for folder in OUR_FOLDERS)]
    return (of_ours or frames or ["unknown"])[0].replace(f"{CHECKOUT}/", "")


def _where(stack: Sequence[FrameSummary]) -> str:
    ours = [frame for frame in stack if frame.filename.startswith(OUR_FOLDERS)]
    shown = reversed((ours or list(stack))[-2:])
    return ", called by ".join(f"{frame.filename.removeprefix(f'{CHECKOUT}/')}:{frame.lineno} in {frame.name}" for frame in shown)


def _in_collective(stack: Sequence[FrameSummary]) -> bool:
    return any(folder in frame.filename for frame in stack[-COLLECTIVE_DEPTH:] for folder in COLLECTIVE_FOLDERS)
