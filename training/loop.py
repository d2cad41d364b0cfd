"""What the training loop tells its hooks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from training.batch import Batch


@dataclass(frozen=True)
class StepDone:
    """An optimizer step that was taken, or skipped."""

    step: int  # optimizer steps taken, this one included
    applied: bool  # False: skipped for a non-finite loss or gradient
    losses: dict[str, float]  # loss/<name>, loss/total and the losses' metrics: means over ranks and micro-batches
    micro_batches: Sequence[Batch]
    data_wait_s: float
    step_s: float


@runtime_checkable
class Hook(Protocol):
    """Called on every rank, in the same order, so it may communicate."""

    def after_step(self, done: StepDone) -> None: ...

    def close(self) -> None: ...
