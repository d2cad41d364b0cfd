"""A run that hangs is reported, and the report names the rank that the others wait for."""

import contextlib
import ctypes
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import ranks
import torch
from waiting import wait_until

from training.distributed import World
from training.watch.hang import HangWatch
from training.watch.hang_report import RankState, hang_folder, look_at, suspicion, text
from training.watch.heartbeat import Beat, Heartbeat, Phase, read_beat
from training.watch.stacks import Stacks

REPORT_AFTER_S = 4.0


@contextlib.contextmanager
def watched(world: World, folder: Path, report_after_s: float = REPORT_AFTER_S) -> Iterator[Heartbeat]:
    logging.basicConfig(filename=folder / f"log-{world.rank}.txt", level=logging.INFO, force=True)
    heartbeat = Heartbeat(folder / "heartbeat", world.rank, every_s=0.1)
    watch = HangWatch(heartbeat, folder, world.rank, world.world_size, report_after_s)
    world.barrier()
    try:
        yield heartbeat
    finally:
        watch.close()
        heartbeat.close()


def reported(folder: Path) -> bool:
    return any("hang: no progress" in log.read_text() for log in folder.glob("log-*.txt"))  # the report is written before


def all_reduce_after(act: Callable[[World, Path], None], phase: Phase, world: World, folder: Path) -> None:
    """Both ranks come to step 5's all-reduce; before it, rank 1 acts in `phase`."""
    with watched(world, folder) as heartbeat:
        heartbeat.beat("data", 5)
        heartbeat.beat("step" if world.rank == 0 else phase, 5)
        wait_until(lambda: read_beat(folder / "heartbeat", world.rank) == heartbeat.last)
        if world.rank == 1:
            act(world, folder)
        world.sum(torch.ones(1))


def sleep_until_reported(world: World, folder: Path) -> None:
    wait_until(lambda: reported(folder))


def stop_oneself(world: World, folder: Path) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def hold_the_interpreter(world: World, folder: Path) -> None:
    """A sleep in C that does not let other threads run, ended by a signal alone."""
    signal.signal(signal.SIGUSR1, lambda *_: None)
    ctypes.PyDLL(None).sleep(120)


def first_rank_is_stopped(world: World, folder: Path) -> None:
    with watched(world, folder) as heartbeat:
        heartbeat.beat("step", 5)
        wait_until(lambda: read_beat(folder / "heartbeat", world.rank) == heartbeat.last)
        if world.rank == 0:
            stop_oneself(world, folder)
        world.sum(torch.ones(1))


CASES: dict[str, Callable[[World, Path], None]] = {
    "waits for data": partial(all_reduce_after, sleep_until_reported, "data"),
    "computes for ever": partial(all_reduce_after, sleep_until_reported, "step"),
    "is stopped": partial(all_reduce_after, stop_oneself, "step"),
    "holds the interpreter": partial(all_reduce_after, hold_the_interpreter, "step"),
    "first is stopped": first_rank_is_stopped,
}
FREED = {"is stopped": (1, signal.SIGCONT), "holds the interpreter": (1, signal.SIGUSR1), "first is stopped": (0, signal.SIGCONT)}  # rank, by what


def hang_in_every_way(world: World, folder: Path) -> None:
    for case, hang in CASES.items():
        (folder / case).mkdir(exist_ok=True)
        hang(world, folder / case)


@pytest.fixture(scope="module")
def hangs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks left behind that hung in each of the ways, one after the other; a folder a case."""
    folder = tmp_path_factory.mktemp("hangs")
    freeing = [threading.Thread(target=free_when_reported, args=(folder / case, *how)) for case, how in FREED.items()]
    for thread in freeing:
        thread.start()
    ranks.on_each(hang_in_every_way, folder)
    for thread in freeing:
        thread.join()
    return folder


def free_when_reported(folder: Path, rank: int, number: signal.Signals) -> None:
    wait_until(lambda: reported(folder), seconds=250)
    beat = read_beat(folder / "heartbeat", rank)
    assert beat is not None
    os.kill(beat.pid, number)


def report_of(folder: Path) -> list[str]:
    return (hang_folder(folder, 5) / "report.txt").read_text().splitlines()


def logged(folder: Path, rank: int = 0) -> str:
    (line,) = [line for line in (folder / f"log-{rank}.txt").read_text().splitlines() if "hang: no progress" in line]
    return line


@pytest.mark.slow
def test_a_rank_that_waits_for_data_while_the_other_waits_for_it_is_named(hangs: Path) -> None:
    folder = hangs / "waits for data"
    first, *rest = report_of(folder)
    assert first == "suspected: rank 1: it is not waiting for other ranks, the others are"
    suspect, other = [row for row in rest if row.startswith(("0 ", "1 "))]
    assert suspect.startswith("1 ")
    assert "data after step 5" in suspect
    assert "step after step 5" in other
    assert "training/distributed.py" in other
    assert "suspected: rank 1 (data after step 5, at " in logged(folder)
    assert str(hang_folder(folder, 5) / "report.txt") in logged(folder)
    stacks = (hang_folder(folder, 5) / "rank-00001.txt").read_text()
    assert "thread MainThread" in stacks
    assert "sleep_until_reported" in stacks
    assert "thread heartbeat" in stacks
    assert "hang: no progress" not in (folder / "log-1.txt").read_text(), "one rank is enough"
    assert not list((folder / "hang").glob("dump-*")), "nothing held the interpreter"


@pytest.mark.slow
def test_of_two_ranks_in_the_same_phase_the_one_that_waits_for_nobody_is_named(hangs: Path) -> None:
    assert report_of(hangs / "computes for ever")[0] == "suspected: rank 1: it is not waiting for other ranks, the others are"


@pytest.mark.slow
def test_a_stopped_process_is_named_though_it_can_say_nothing(hangs: Path) -> None:
    first, *rest = report_of(hangs / "is stopped")
    assert first == "suspected: rank 1: its process is gone or stopped"
    suspect = next(row for row in rest if row.startswith("1 "))
    assert "stopped, no stacks" in suspect
    assert "rank 1 (step after step 5, at -): its process is gone or stopped" in logged(hangs / "is stopped")


@pytest.mark.slow
def test_where_the_first_rank_is_stopped_the_second_reports(hangs: Path) -> None:
    assert report_of(hangs / "first is stopped")[0] == "suspected: rank 0: its process is gone or stopped"
    assert "suspected: rank 0" in logged(hangs / "first is stopped", rank=1)


@pytest.mark.slow
def test_c_code_that_never_gives_the_interpreter_back_is_found_too(hangs: Path) -> None:
    folder = hangs / "holds the interpreter"
    first, *rest = report_of(folder)
    assert first == "suspected: rank 1: it writes no stack: its interpreter does not run, or its host is gone"
    assert "hold_the_interpreter" in (folder / "hang" / "dump-rank-00001.txt").read_text()
    suspect = next(row for row in rest if row.startswith("1 "))
    assert "lives, no stacks" in suspect
    assert "in hold_the_interpreter (holds the interpreter)" in suspect


def test_a_hang_is_reported_once_and_the_next_one_after_progress_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    heartbeat = Heartbeat(tmp_path / "heartbeat", 0, every_s=0.02)
    heartbeat.beat("data", 3)
    watch = HangWatch(heartbeat, tmp_path, 0, 1, report_after_s=0.4)
    try:
        wait_until(lambda: "hang: no progress" in caplog.text)
        wait_until(lambda: heartbeat.last.age_s(time.time()) > 2)
        assert caplog.text.count("hang: no progress") == 1
        assert "suspected: rank 0 (data after step 3" in caplog.text
        heartbeat.beat("step", 3)
        wait_until(lambda: "rank 0 goes on: phase step after step 3" in caplog.text)
        wait_until(lambda: caplog.text.count("hang: no progress") == 2)
    finally:
        watch.close()
        heartbeat.close()


def test_a_run_that_makes_progress_is_left_alone(tmp_path: Path) -> None:
    heartbeat = Heartbeat(tmp_path / "heartbeat", 0, every_s=0.02)
    watch = HangWatch(heartbeat, tmp_path, 0, 1, report_after_s=5.0)
    for step in range(30):
        heartbeat.beat("step", step)
        time.sleep(0.02)
    watch.close()
    heartbeat.close()
    assert not (tmp_path / "hang").exists()


ENDLESS = """
import logging, sys, threading
from pathlib import Path
from training.watch.hang import HangWatch
from training.watch.heartbeat import Heartbeat
logging.basicConfig(stream=sys.stderr)
folder = Path(sys.argv[1])
heartbeat = Heartbeat(folder / "heartbeat", 0, every_s=0.02)
heartbeat.beat("save", 8)
watch = HangWatch(heartbeat, folder, 0, 1, report_after_s=0.5, exit_after_s=2.0)
threading.Event().wait()
"""


def test_after_the_second_time_out_the_process_ends_resumably_and_says_so(tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", ENDLESS, str(tmp_path)], capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 4
    assert "without progress (phase save after step 8); the same command goes on from the last checkpoint" in ended.stderr.splitlines()[-1]
    assert (hang_folder(tmp_path, 8) / "report.txt").exists()


STOPPED = """
import logging, sys, time
from pathlib import Path
from training.watch.hang import HangWatch
from training.watch.heartbeat import Heartbeat
logging.basicConfig(stream=sys.stderr)
folder = Path(sys.argv[1])
heartbeat = Heartbeat(folder / "heartbeat", 0, every_s=0.02)
watch = HangWatch(heartbeat, folder, 0, 1, report_after_s=4.0, exit_after_s=5.0)
for step in range(20):
    heartbeat.beat("step", step)
    for _ in range(6):
        time.sleep(0.08)  # so that it does not beat at once when it goes on
watch.close()
"""


@pytest.mark.slow
def test_time_in_which_the_whole_process_is_stopped_is_no_hang(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", STOPPED, str(tmp_path)], stderr=subprocess.PIPE, text=True)
    wait_until(lambda: (beat := read_beat(tmp_path / "heartbeat", 0)) is not None and beat.step >= 3)
    time.sleep(0.25)  # a look of the watch, and less than a beat
    process.send_signal(signal.SIGSTOP)
    time.sleep(6)  # longer than both time-outs
    process.send_signal(signal.SIGCONT)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "")


def state(
    rank: int, phase: Phase = "step", step: int = 5, where: str = "training/a.py:1 in f", in_collective: bool = True, silent_s: float = 700.0
) -> RankState:
    beat = Beat("elsewhere", 100 + rank, rank, step, phase, "2026-01-01T00:00:00.000000+00:00")
    return RankState(rank, beat, silent_s, "unknown", Stacks(beat, where, in_collective))


def test_one_odd_rank_among_many_is_the_suspect() -> None:
    odd = {
        "its process is gone or stopped": replace(state(3), life="gone"),
        "it has no heartbeat": replace(state(3), beat=None),
        "it still makes progress, the others wait": state(3, "evaluate", silent_s=2.0),
        "it writes no stack": replace(state(3), stacks=None),
        "it is not waiting for other ranks": state(3, in_collective=False),
        "it is in another phase than most": state(3, "save"),
        "it is at another place in the code than most": state(3, where="training/b.py:2 in g"),
        "all ranks are at the same place": state(3, silent_s=701.0),
    }
    for why, suspect in odd.items():
        found = suspicion([state(rank) for rank in range(3)] + [suspect] + [state(rank) for rank in range(4, 8)], 600.0)
        assert found.ranks == [3], why
        assert found.why.startswith(why)


def test_where_no_rank_is_in_a_collective_call_those_left_behind_for_data_are_the_suspects() -> None:
    behind = [state(rank, "data", in_collective=False) for rank in range(6)]  # as on a GPU, where the host waits for the device
    found = suspicion([*behind, state(6, in_collective=False), state(7, in_collective=False)], 600.0)
    assert found.ranks == [0, 1, 2, 3, 4, 5]
    assert found.why == "it is still waiting for data"


def test_ranks_without_stacks_come_first_in_the_report() -> None:
    states = [state(0), state(1), replace(state(2), stacks=None)]
    rows = text(states, suspicion(states, 600.0)).splitlines()[3:6]
    assert [row.split()[0] for row in rows] == ["2", "0", "1"]


def test_a_rank_that_never_beat_is_shown_as_such(tmp_path: Path) -> None:
    (found,) = look_at(tmp_path, 1)
    assert (found.beat, found.life, found.place) == (None, "unknown", "no heartbeat")
