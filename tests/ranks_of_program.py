"""A program of the tests, started once for each rank as a launcher would."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tiny_run import environment

from pipeline.core.loopback import free_port


def run_ranks(program: str, arguments: Callable[[int], Sequence[object]], folder: Path, ranks: int, timeout_s: float = 500) -> tuple[int, list[str]]:
    """`python PROGRAM ARGUMENTS(RANK)...` on all ranks; the exit code, the same of each, and what each rank said on both its outputs."""
    folder.mkdir(parents=True, exist_ok=True)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(ranks), "LOCAL_SIZE": str(ranks)}
    said = [folder / f"said-{rank}.txt" for rank in range(ranks)]
    processes = []
    for rank in range(ranks):
        own = {**environment(), **place, "RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": os.pathsep.join(sys.path)}
        with said[rank].open("wb") as output:
            command = [sys.executable, program, *map(str, arguments(rank))]
            processes.append(subprocess.Popen(command, env=own, stdout=output, stderr=subprocess.STDOUT))
    try:
        codes = {process.wait(timeout_s) for process in processes}
    finally:
        for process in processes:
            process.kill()
    texts = [path.read_text() for path in said]
    assert len(codes) == 1, (codes, [text[-3000:] for text in texts])
    return codes.pop(), texts
