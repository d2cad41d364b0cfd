"""Several ranks that talk over gloo, each a process of its own, for tests of what they agree on before DeepSpeed starts."""

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from training.distributed import World

_T = TypeVar("_T")


def deepspeed_without_its_operator() -> Any:
    """The module, which would else compile an operator for minutes; gloo gives the same sums.

    And again at the next start of a real run: that takes the ninja beside python, while these ranks would find the system's, and neither trusts the
    other's log.
    """
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def on_each(act: Callable[[World, Path], _T], folder: Path, ranks: int = 2) -> list[_T]:
    """What `act(world, folder)`, a module's function, gives on each rank."""
    with ProcessPoolExecutor(ranks, get_context("spawn")) as pool:
        return list(pool.map(_on_rank, [act] * ranks, [folder] * ranks, range(ranks), [ranks] * ranks))


def _on_rank(act: Callable[[World, Path], _T], folder: Path, rank: int, ranks: int) -> _T:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/ranks", rank=rank, world_size=ranks)
    try:
        return act(World(rank, ranks, torch.device("cpu")), folder)
    finally:
        dist.destroy_process_group()
