"""How much memory the tensors of a piece of work hold at once, on a CPU."""

from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity, profile


def peak_bytes(work: Callable[[], Any]) -> int:
    """The largest sum of bytes that torch's allocator handed out during `work` and had not got back: what was there before counts nothing.

    From the profiler's record of every allocation, so temporaries inside an operation count too; resident memory would also show what the
    allocator keeps for later.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak
