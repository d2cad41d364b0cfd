"""Where the time of a few steps goes, operation by operation, and on a GPU which tensors its memory holds."""

import logging
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from training.loop import StepDone

log = logging.getLogger(__name__)
RANGES = "albef/"  # what our own `record_function` ranges begin with
ROWS = 40
SNAPSHOT_EVENTS = 1_000_000  # allocations remembered, the last ones; some hundred bytes each


class Profiler:
    """Profiles steps [first_step, first_step + steps) of one rank, or those of them that are still to come; costs a comparison a step otherwise.

    Writes into `folder`: `rank-R-step-N.json.gz`, a trace for chrome://tracing or Perfetto, named by the first step in it; `table.txt`, operations by
    the time they themselves took on CPU and GPU, then our own ranges; and with `memory_snapshot`, where there is a GPU, `rank-R-step-N-memory.pickle`
    for pytorch.org/memory_viz. A run that ends inside the window writes what it has.
    """

    def __init__(
        self, folder: Path, rank: int, device: torch.device, *, first_step: int, steps: int, memory_snapshot: bool = False, steps_taken: int = 0
    ) -> None:
        self.folder, self.rank, self.device = folder, rank, device
        self.first_step, self.last_step = max(first_step, steps_taken + 1), first_step + steps - 1
        self.memory_snapshot = memory_snapshot and device.type == "cuda"
        self._profile: profile | None = None
        self._steps_taken = steps_taken
        if steps_taken >= self.last_step:
            log.info("nothing to profile: step %d is taken, the window of training.profile ended with step %d", steps_taken, self.last_step)
        if memory_snapshot and not self.memory_snapshot:
            log.info("no memory snapshot: training.profile.memory_snapshot needs a CUDA device, this run computes on %s", device.type)
        self._begin_if_due()

    def after_step(self, done: StepDone) -> None:
        self._steps_taken = done.step
        if self._profile and done.step >= self.last_step:
            self._finish()
        self._begin_if_due()

    def close(self) -> None:
        if self._profile:
            self._finish()

    def _begin_if_due(self) -> None:
        """Before the step is taken, so that waiting for its data is seen, too."""
        if self._profile is None and self.first_step <= self._steps_taken + 1 <= self.last_step:
            if self.memory_snapshot:
                torch.cuda.memory._record_memory_history(max_entries=SNAPSHOT_EVENTS)
            on_gpu = self.device.type == "cuda"
            self._profile = profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * on_gpu], record_shapes=True)
            self._profile.start()

    def _finish(self) -> None:
        assert self._profile is not None
        recorded, self._profile = self._profile, None
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # kernels of the last step may still run
        recorded.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"rank-{self.rank}-step-{self.first_step}"
        if self.memory_snapshot:
            torch.cuda.memory._dump_snapshot(str(self.folder / f"{name}-memory.pickle"))  # type: ignore[no-untyped-call]
            torch.cuda.memory._record_memory_history(enabled=None)
        recorded.export_chrome_trace(str(self.folder / f"{name}.json.gz"))
        (self.folder / "table.txt").write_text(tables(recorded.key_averages(), self.device))
        log.info("profiled steps %d to %d: %s, table.txt and %s.json.gz", self.first_step, self._steps_taken, self.folder, name)


def tables(operations: Any, device: torch.device) -> str:
    """Operations, as torch's profile averages them, by their own time; then our ranges, which operations of theirs are part of."""
    parts = ["On the CPU, by own time", operations.table(sort_by="self_cpu_time_total", row_limit=ROWS)]
    if device.type == "cuda":
        parts += ["On the GPU, by own time", operations.table(sort_by="self_device_time_total", row_limit=ROWS)]
    ranges = sorted((event for event in operations if event.key.startswith(RANGES)), key=lambda event: -event.cpu_time_total)
    lines = [f"{event.key:40} {event.count:>8} {event.cpu_time_total / 1e3:>12.3f} {event.device_time_total / 1e3:>12.3f}" for event in ranges]
    return "\n".join([*parts, f"{'Our ranges':40} {'calls':>8} {'CPU ms':>12} {'GPU ms':>12}", *lines, ""])
