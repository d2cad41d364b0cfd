"""Killed at any moment, a run finds its newest checkpoint whole."""

import logging
import multiprocessing
import os
import random
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from saving import is_of, save
from waiting import wait_until

from training.checkpoint import Saver, newest
from training.checkpoint.layout import complete, folders
from training.distributed import World

ELEMENTS = 1 << 19  # 2 MiB a tensor
PAUSE_S = 0.05


def save_for_ever(folder: str, log: Path, rank: int, world_size: int, environment: dict[str, str]) -> None:
    """What a run does between its steps; `log` says what was begun, and what is there."""
    os.environ.update(environment)
    if world_size > 1:
        dist.init_process_group("gloo", init_method=f"file://{log}.meeting", rank=rank, world_size=world_size)
    world = World(rank, world_size, torch.device("cpu"))
    with log.open("a") as told:
        found = newest(folder, world)
        step = found.step if found else 0
        saver = Saver(folder, world, keep_last=2, keep_every_steps=50, patience_s=60.0)
        print("joined", rank, file=told, flush=True)
        while True:
            step += 1
            print("saving", step, file=told, flush=True)
            save(saver, step, ELEMENTS)
            saver.wait()
            print("saved", step, file=told, flush=True)
            time.sleep(PAUSE_S)


def kill(folder: str, log: Path, after_s: float, within_a_save: bool, ranks: int, killed: list[int]) -> list[str]:
    """The log of ranks that save, of which those in `killed` die after a while; the others end by themselves."""
    context = multiprocessing.get_context("forkserver")  # a process starts with torch imported
    context.set_forkserver_preload(["training.checkpoint", "saving"])
    environment = {"GLOO_SOCKET_IFNAME": "lo"} | {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    processes = [context.Process(target=save_for_ever, args=(folder, log, rank, ranks, environment), daemon=True) for rank in range(ranks)]
    for process in processes:
        process.start()
    time.sleep(after_s)
    if within_a_save:
        wait_until(lambda: is_saving(lines_of(log)) and is_half_done(folder))
    for rank in killed:
        processes[rank].kill()
    lines = lines_of(log)
    for rank, process in enumerate(processes):
        if f"joined {rank}" not in lines:
            process.kill()  # it may wait for the dead to join
        process.join(60)
        assert process.exitcode is not None, "outlived the death of another rank"
    return lines_of(log)


def lines_of(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


def is_saving(lines: list[str]) -> bool:
    return bool(lines) and lines[-1].startswith("saving")


def is_half_done(folder: str) -> bool:
    return folders(folder) != complete(folder)


def kill_again_and_again(folder: str, scratch: Path, kills: int, longest_s: float, ranks: int = 1) -> tuple[int, int]:
    """How many kills hit a save, and how many left one half done; after each the newest checkpoint is whole, and no older than the log says.

    Every second kill is at any moment, the others when files are there and their manifest is not.
    """
    chance, hits, half_done, promised = random.Random(0), 0, 0, 0
    for number in range(kills):
        killed = chance.sample(range(ranks), k=chance.randint(1, ranks))  # some, or all
        lines = kill(folder, scratch / f"log-{number}", chance.uniform(0, longest_s), number % 2 == 1, ranks, killed)
        hits += is_saving(lines)
        half_done += is_saving(lines) and is_half_done(folder)
        promised = max([promised, *(int(line.split()[1]) for line in lines if line.startswith("saved"))])
        found = newest(folder)
        assert (found.step if found else 0) >= promised
        assert found is None or is_of(found, found.step, ranks)
    logging.getLogger(__name__).warning("%d of %d kills hit a save, %d left it half done; %d checkpoints", hits, kills, half_done, promised)
    return hits, half_done


@pytest.mark.slow
def test_on_disk_a_kill_at_any_moment_leaves_the_newest_checkpoint_whole(tmp_path: Path) -> None:
    hits, half_done = kill_again_and_again(str(tmp_path / "checkpoints"), tmp_path, kills=40, longest_s=1.0)
    assert hits > 10
    assert half_done > 5


@pytest.mark.slow
def test_on_s3_a_kill_at_any_moment_leaves_the_newest_checkpoint_whole(s3_bucket: str, tmp_path: Path) -> None:
    hits, half_done = kill_again_and_again(f"{s3_bucket}/checkpoints", tmp_path, kills=15, longest_s=3.0)
    assert hits > 5
    assert half_done > 2


@pytest.mark.slow
def test_of_two_ranks_the_kill_of_one_or_both_leaves_the_newest_checkpoint_whole(tmp_path: Path) -> None:
    hits, half_done = kill_again_and_again(str(tmp_path / "checkpoints"), tmp_path, kills=20, longest_s=2.0, ranks=2)
    assert hits > 5
    assert half_done > 2
