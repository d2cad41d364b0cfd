"""How much memory the tensors of a piece of work hold: at once at the most, and still at its end."""

import gc
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch.profiler import ProfilerActivity, profile

T = TypeVar("T")


def peak_bytes(work: Callable[[], Any]) -> int:
    """The largest sum of bytes that torch's allocator handed out during `work` on the CPU and had not got back: what was there before counts nothing.

    From the profiler's record of every allocation, so temporaries inside an operation count too; resident memory would also show what the
    allocator keeps for later.
    """
    live = peak = 0
    for change in _changes(work):
        live += change
        peak = max(peak, live)
    return peak


def live_bytes(build: Callable[[], T], device: torch.device | str = "cpu") -> tuple[T, int]:
    """What `build` gives, and by how many bytes live tensors are more once it is done and garbage is collected.

    On the CPU by the same record, which sees the calling thread alone; on CUDA by the allocator's count, where every block is a multiple of 512 bytes.
    """
    kept: list[T] = []

    def work() -> None:
        kept.append(build())
        gc.collect()

    gc.collect()  # what was garbage before must not count as given back
    if torch.device(device).type == "cuda":
        before = torch.cuda.memory_allocated(device)
        work()
        return kept[0], torch.cuda.memory_allocated(device) - before
    held = sum(_changes(work))
    return kept[0], held


def _changes(work: Callable[[], Any]) -> Iterator[int]:
    """Bytes allocated (+) and freed (-) during `work`, in order."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    yield from (event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
