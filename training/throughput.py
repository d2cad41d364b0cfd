"""How much of the device a training step uses: useful FLOP/s, and their share of what a plain matrix product reaches there (MFU)."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from training import flops
from training.batch import Batch
from training.model_config import ModelConfig

SIDES = {"cpu": 512, "cuda": 8192}  # of the square factors
TRIES = 5


def matrix_product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the fastest of a few square products in the compute type; takes about 0.1 s on either kind of device.

    Measured, since a data sheet knows neither a machine's power limit nor, on a CPU, how many of its cores are ours.
    """
    side = SIDES[device.type]
    generator = torch.Generator(device).manual_seed(0)  # the run's own draws stay as they are; zeros would let a GPU clock higher than it does in training
    left, right = (torch.randn(side, side, device=device, generator=generator).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(TRIES + 1):  # the first one also loads the library
        _wait_for(device)
        start = time.perf_counter()
        left @ right
        _wait_for(device)
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / min(seconds[1:])


@dataclass(frozen=True)
class Throughput:
    """Figures of one rank's device for the log."""

    model: ModelConfig
    losses: Mapping[str, Any]  # by name
    group_size: int
    queue_size: int
    device_rate: float  # FLOP/s of `matrix_product_rate`

    def figures(self, batches: Sequence[Batch], alpha: float, step: int, pairs_per_s: float) -> dict[str, float]:
        """`tflops` and `mfu` of a step over these batches, which must still be on the host; `pairs_per_s` is the device's own share.

        Padding and recomputed states are not counted. Empty with a loss whose passes `training.flops` does not know.
        """
        objectives = flops.objectives_of(self.losses, alpha, step)
        if objectives is None:
            return {}
        parts = flops.fused_step(self.model, flops.texts_of(batches), self.group_size, self.queue_size, objectives)
        rate = sum(parts.values()) * pairs_per_s
        return {"tflops": rate / 1e12, "mfu": rate / self.device_rate}


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
