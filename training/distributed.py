"""One process among many: who am I, and how do we talk; the same for `deepspeed`, `torchrun`, `srun` and a lone process."""

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.core.errors import AlbefError, FailedElsewhere
from pipeline.core.loopback import free_port
from training import slurm

_T = TypeVar("_T")


@dataclass(frozen=True)
class World:
    """This process's place: global rank, number of ranks, the device it computes on, and the ranks of its node."""

    rank: int
    world_size: int
    device: torch.device
    local_size: int = 1

    def sum(self, values: Tensor) -> Tensor:
        """Over all ranks, the same on each; `values` is left alone."""
        if self.world_size == 1:
            return values
        total = values.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    def mean(self, values: Tensor) -> Tensor:
        """The average over all ranks, the same on each; `values` is left alone."""
        return self.sum(values) / self.world_size if self.world_size > 1 else values

    def gather(self, local: Tensor) -> Tensor:
        """Rows of all ranks, concatenated in rank order: [N, ...] -> [world_size * N, ...]; carries no gradient."""
        if self.world_size == 1:
            return local
        gathered = local.new_empty((self.world_size * local.shape[0], *local.shape[1:]))
        dist.all_gather_into_tensor(gathered, local.contiguous())
        return gathered

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()

    def of_all(self, value: Any) -> list[Any]:
        """Every rank's value, in rank order, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def from_first(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def together(self, act: Callable[[], _T]) -> _T:
        """What `act` gives on this rank, once it succeeded on all; every rank must call.

        One number is summed where all goes well, so a step can afford it. Raises an error of ours, or of the system, that `act` raises here, and
        FailedElsewhere where another rank met one, or met the same before: nobody is left waiting for those that ended, and no line is printed twice.
        """
        if self.world_size == 1:
            return act()
        done: list[_T] = []
        error: AlbefError | OSError | None = None
        try:
            done.append(act())
        except (AlbefError, OSError) as raised:
            error = raised
        failures = self.sum(torch.tensor([float(error is not None)], device=self.device))
        if not failures.item():
            return done[0]
        own = (str(error), getattr(error, "exit_code", 1)) if error else None
        told_by_all = self.of_all(own)
        if error and told_by_all.index(own) == self.rank:
            raise error
        raise FailedElsewhere(*next(told for told in told_by_all if told))


def complete_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables torch.distributed and DeepSpeed need and that the launcher left out.

    `deepspeed` and `torchrun` set RANK and friends; `srun` sets SLURM_*; without a launcher this is a world of one on a free port.

    Raises ConfigError under `srun` without MASTER_ADDR and MASTER_PORT where Slurm cannot be asked for them.
    """
    if "RANK" in environment:
        return {"LOCAL_SIZE": environment.get("LOCAL_SIZE") or environment.get("LOCAL_WORLD_SIZE") or environment.get("WORLD_SIZE", "1")}
    if "SLURM_STEP_ID" not in environment:  # a batch script outside srun sees SLURM_NTASKS, too, but is alone
        return {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    given = "MASTER_ADDR" in environment and "MASTER_PORT" in environment
    return slurm.place(environment) | ({} if given else slurm.rendezvous(environment))


def start(torch_threads: int | None) -> World:
    """Join the process group: nccl where there is a GPU, gloo elsewhere.

    Must run before deepspeed is imported anywhere else, since DS_ACCELERATOR decides at import.
    """
    os.environ.update(complete_environment(os.environ))
    cuda = torch.cuda.is_available()
    if not cuda:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    local_rank, local_size = int(os.environ["LOCAL_RANK"]), int(os.environ.get("LOCAL_SIZE", "1"))
    torch.set_num_threads(torch_threads or max(1, len(os.sched_getaffinity(0)) // local_size))
    os.environ["PATH"] = (
        f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # ninja lies beside python, also where the environment is not activated
    )
    import deepspeed  # after the environment is complete

    if os.environ["WORLD_SIZE"] == "1":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # else compiled at the first start, though there is nobody to share memory with
    deepspeed.init_distributed(dist_backend="nccl" if cuda else "gloo", verbose=False)
    if not cuda and local_size > 1:
        _unlink_shared_memory()
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    return World(rank=dist.get_rank(), world_size=dist.get_world_size(), device=device, local_size=local_size)


def _unlink_shared_memory() -> None:
    """DeepSpeed's CPU collectives leave 66 MB a rank and run in /dev/shm; once every rank has mapped them, nobody needs their names."""
    dist.barrier()
    name = f"deepspeed_allreduce_buffer_{os.getuid()}_{os.environ['MASTER_ADDR']}_{os.environ['MASTER_PORT']}_{os.environ['RANK']}"
    Path("/dev/shm", name).unlink(missing_ok=True)
