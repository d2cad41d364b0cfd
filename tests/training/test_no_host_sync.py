"""A step never waits for the device: nothing in it reads a value back."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tiny_albef import TINY, models, pretrainer, ragged_batch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from training.batch import Batch
from training.feature_queue import FeatureQueue
from training.model import Albef
from training.objective import Pretrainer

WAITING = {
    "_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "unique", "_unique2", "unique_dim", "unique_consecutive", "bincount",
}  # fmt: skip


class HostSyncs(TorchDispatchMode):
    """Names of the operations that would make a host wait for its device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in WAITING or (name.startswith("index") and _by_mask(args)) or _moves(args, kwargs or {}):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def _by_mask(args: Any) -> bool:
    return len(args) > 1 and isinstance(args[1], list | tuple) and any(isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1])


def _moves(args: Any, kwargs: Any) -> bool:
    return bool(args) and isinstance(args[0], Tensor) and kwargs.get("device") not in (None, args[0].device)


@pytest.mark.parametrize(
    "wait",
    [lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: x.nonzero(), lambda x: x.unique(), lambda x: x.to("meta"), lambda x: x.masked_select(x > 0)],
)
def test_the_counter_sees_what_would_wait(wait: Callable[[Tensor], Any]) -> None:
    with HostSyncs() as syncs:
        wait(torch.randn(4))
    assert syncs.found


def step_with(batch: Batch, student: Albef, teacher: Albef, queue: FeatureQueue) -> None:
    objective: Pretrainer = pretrainer(student, 6)
    objective(batch, teacher, queue, 0.4).total.backward()


def test_forward_and_backward_have_no_host_sync() -> None:
    (student, teacher), batch, queue = models(), ragged_batch(12, 6), FeatureQueue(10, TINY.embed_dim)
    with HostSyncs() as syncs:
        step_with(batch, student, teacher, queue)
    assert not syncs.found


@contextmanager
def refusing_to_wait() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_sees_no_host_sync_either() -> None:
    student, teacher = (copy.deepcopy(model).to("cuda") for model in models())
    batch, queue = ragged_batch(12, 6).to("cuda"), FeatureQueue(10, TINY.embed_dim, "cuda")
    step_with(batch, student, teacher, queue)  # the first one loads kernels
    torch.cuda.synchronize()
    with refusing_to_wait():
        step_with(batch, student, teacher, queue)
