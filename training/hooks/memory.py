"""A rank's memory for the log."""

from pathlib import Path

import torch

GIB = 2**30
STATUS = Path("/proc/self/status")  # psutil knows no peak on Linux, and getrusage's may be that of the process which started this one


def memory_figures(device: torch.device) -> dict[str, float]:
    """On CUDA `memory/allocated_gib` now and `memory/peak_gib` since the last call; elsewhere `memory/resident_gib` now and `memory/peak_gib` so far."""
    if device.type == "cuda":
        figures = {"memory/allocated_gib": torch.cuda.memory_allocated(device) / GIB, "memory/peak_gib": torch.cuda.max_memory_allocated(device) / GIB}
        torch.cuda.reset_peak_memory_stats(device)
        return figures
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    names = {"VmRSS": "memory/resident_gib", "VmHWM": "memory/peak_gib"}  # sandboxes that imitate a kernel may lack the latter
    return {name: int(lines[key].split()[0]) * 1024 / GIB for key, name in names.items() if key in lines}
