"""Of a run that hangs: where each rank is, and which of them the others wait for."""

import socket
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from training.watch import stacks
from training.watch.heartbeat import PHASES, Beat, read_beat
from training.watch.stacks import Stacks

Life = Literal["lives", "stopped", "gone", "unknown"]
NAMED = 8  # ranks in the one line of the log


@dataclass(frozen=True)
class RankState:
    """What is known of one rank from its files and, on this host, of its process."""

    rank: int
    beat: Beat | None
    silent_s: float  # without progress, by the clocks of two hosts
    life: Life
    stacks: Stacks | None
    dump: str | None = None  # where it is, of a rank whose interpreter does not run

    @property
    def where(self) -> str:
        if self.stacks:
            return self.stacks.where
        return f"{self.dump} (holds the interpreter)" if self.dump else "-"

    @property
    def place(self) -> str:
        return f"{self.beat.phase} after step {self.beat.step}" if self.beat else "no heartbeat"


@dataclass(frozen=True)
class Suspicion:
    """The ranks that the others seem to wait for, and why it is thought so."""

    ranks: list[int]
    why: str


def look_at(train_folder: Path, world_size: int) -> list[RankState]:
    """Every rank as its files show it now."""
    return [_state_of(train_folder, rank) for rank in range(world_size)]


def stacks_path(train_folder: Path, beat: Beat) -> Path:
    return hang_folder(train_folder, beat.step) / f"rank-{beat.rank:05d}.txt"


def hang_folder(train_folder: Path, step: int) -> Path:
    return train_folder / "hang" / f"step-{step:07d}"


def dump_path(train_folder: Path, rank: int) -> Path:
    """What `faulthandler` writes to where the interpreter of a rank does not run; empty until then."""
    return train_folder / "hang" / f"dump-rank-{rank:05d}.txt"


def suspicion(states: Sequence[RankState], report_after_s: float) -> Suspicion:
    """Who holds up the others; the first rule that tells some ranks from the rest decides.

    A dead or stopped process, and one that writes no stack, explains everything; a rank that still makes progress keeps the rest waiting; one that is not
    inside a collective call keeps those waiting that are; then the phases, the places in the code, and last who fell silent first.
    """
    rules = (
        ("its process is gone or stopped", [state.life in ("gone", "stopped") for state in states]),
        ("it has no heartbeat", [state.beat is None for state in states]),
        ("it still makes progress, the others wait", [state.silent_s < report_after_s / 2 for state in states]),
        ("it writes no stack: its interpreter does not run, or its host is gone", [state.stacks is None for state in states]),
        ("it is not waiting for other ranks, the others are", [state.stacks is not None and not state.stacks.in_collective for state in states]),
        ("it is still waiting for data", _behind_for_data(states)),
        ("it is in another phase than most", _differs_from_most([state.place for state in states])),
        ("it is at another place in the code than most", _differs_from_most([state.where for state in states])),
    )
    for why, marked in rules:
        if any(marked) and (not all(marked) or len(states) == 1):
            return Suspicion([state.rank for state, named in zip(states, marked, strict=True) if named], why)
    first = max(states, key=lambda state: state.silent_s)
    return Suspicion([first.rank], "all ranks are at the same place (the network between them?), and it fell silent first")


def line(states: Sequence[RankState], suspected: Suspicion, report: Path) -> str:
    """What the log says of it."""
    named = [f"rank {rank} ({states[rank].place}, at {states[rank].where})" for rank in suspected.ranks[:NAMED]]
    more = f" and {len(suspected.ranks) - NAMED} more" if len(suspected.ranks) > NAMED else ""
    longest = max((state.silent_s for state in states if state.beat), default=0.0)
    return f"hang: no progress for {longest:.0f} s; suspected: {', '.join(named)}{more}: {suspected.why}; stacks of all ranks and more: {report}"


def text(states: Sequence[RankState], suspected: Suspicion) -> str:
    """The report: the suspects, then a line a rank, those without stacks first."""
    ranks = ", ".join(map(str, suspected.ranks))
    rows = [("rank", "phase", "silent", "process", "host:pid", "where")]
    for state in sorted(states, key=lambda state: (state.stacks is not None, state.rank not in suspected.ranks, state.rank)):
        process = f"{state.beat.host}:{state.beat.pid}" if state.beat else "-"
        silent = f"{state.silent_s:.0f} s" if state.beat else "-"
        rows.append((str(state.rank), state.place, silent, state.life + ("" if state.stacks else ", no stacks"), process, state.where))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    table = ["  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]) for row in rows]
    hint = "where a process lives and has no stacks, on its host: py-spy dump --pid PID"
    return "\n".join([f"suspected: rank {ranks}: {suspected.why}", "", *table, "", hint, ""])


def _state_of(train_folder: Path, rank: int) -> RankState:
    beat = read_beat(train_folder / "heartbeat", rank)
    if beat is None:
        return RankState(rank, None, float("inf"), "unknown", None)
    return RankState(rank, beat, beat.age_s(time.time()), _life(beat), stacks.read(stacks_path(train_folder, beat), beat), _dump(train_folder, beat))


def _life(beat: Beat) -> Life:
    if beat.host != socket.gethostname():
        return "unknown"
    try:
        status = psutil.Process(beat.pid).status()
    except psutil.Error:
        return "gone"
    if status in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
        return "gone"
    return "stopped" if status in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP) else "lives"


def _dump(train_folder: Path, beat: Beat) -> str | None:
    path = dump_path(train_folder, beat.rank)
    try:
        found = path.stat()
        return stacks.innermost_of_dump(path) if found.st_size and beat.age_s(found.st_mtime) > 0 else None
    except OSError:
        return None


def _behind_for_data(states: Sequence[RankState]) -> list[bool]:
    """Ranks that others have left behind in the data phase, the only one in which a rank waits for no other."""
    orders = [(state.beat.step, PHASES.index(state.beat.phase)) if state.beat else (0, 0) for state in states]
    return [state.beat is not None and state.beat.phase == "data" and order < max(orders) for state, order in zip(states, orders, strict=True)]


def _differs_from_most(places: Sequence[str]) -> list[bool]:
    (most, count), *_ = Counter(places).most_common(1)
    return [count > len(places) / 2 and place != most for place in places]
