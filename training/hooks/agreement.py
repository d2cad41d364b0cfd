"""Ranks that should hold the same really do: the feature queue, the weights that compute, the place in the data."""

import logging

import torch
from torch import Tensor

from training.loop import StepDone
from training.training_run import TrainingRun

log = logging.getLogger(__name__)


class RanksDiverged(RuntimeError):
    """What every rank computes alike came out different: a bug, or memory that forgets. No checkpoint after the last agreement is to be trusted."""


class Agreement:
    """Compares checksums of all ranks every `every_steps` steps; a sum of bits, made on the device."""

    def __init__(self, run: TrainingRun, every_steps: int) -> None:
        self._run, self._every_steps = run, every_steps
        self._agreed_at = run.state.step

    def after_step(self, done: StepDone) -> None:
        if self._run.world.world_size == 1 or done.step % self._every_steps:
            return
        own = self.checksums()
        for name, sums in {name: [of_rank[name] for of_rank in self._run.world.of_all(own)] for name in own}.items():
            if len(set(sums)) > 1:
                raise RanksDiverged(
                    f"step {done.step}: the {name} differs between ranks (checksums {sums}); it was the same after step {self._agreed_at}; "
                    "start again from a checkpoint of that step or before, and look at the memory and the GPU of the rank that stands alone"
                )
        self._agreed_at = done.step

    def checksums(self) -> dict[str, int]:
        run = self._run
        state = run.queue.state_dict()
        sums = {"feature queue": sum(_bits(state[name]) for name in ("image", "text", "ids")) + state["position"]}
        if run.config.zero_stage < 3:
            sums["student"] = sum(_bits(parameter) for parameter in run.student.parameters())
        place = run.state.position
        return {**sums, "data position": hash((place.epoch, place.step))}

    def close(self) -> None:
        """Holds nothing."""


def _bits(tensor: Tensor) -> int:
    """A sum of the values' bits: the same whatever the order, and another for almost every change."""
    same_size = {8: torch.int64, 4: torch.int32, 2: torch.int16}[tensor.element_size()]
    return int(tensor.detach().reshape(-1).view(same_size).sum(dtype=torch.int64))
