"""The pre-training objective: student, teacher and queue in, the chosen losses of one micro-batch out."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pipeline.core.errors import ConfigError
from training.batch import Batch
from training.feature_queue import FeatureQueue
from training.global_group import GlobalGroup
from training.losses import Loss
from training.model import Albef
from training.step import Negatives, Read, Step


@dataclass(frozen=True)
class StepOutput:
    """What one micro-batch leaves behind; `total` carries the graph."""

    losses: dict[str, Tensor]  # by name, unweighted
    total: Tensor  # weighted sum
    teacher_image_feat: Float[Tensor, "b e"] | None  # to be pushed into the queue once the step was applied; None where no loss reads the queue
    teacher_text_feat: Float[Tensor, "b e"] | None
    image_ids: Int[Tensor, " b"] | None  # to be pushed with them; None where no loss reads the queue's
    metrics: dict[str, Tensor]  # detached scalars, still on the device


class Pretrainer(nn.Module):
    """The student and its losses as one module, so that an engine that wraps it sees every parameter's use inside `forward`."""

    def __init__(self, student: Albef, losses: Mapping[str, Loss], group_size: int = 64, global_group: GlobalGroup | None = None) -> None:
        super().__init__()
        self.student = student
        self.losses = dict(losses)
        self.group_size = group_size
        self.global_group = global_group

    def forward(
        self,
        batch: Batch,
        teacher: Albef,
        queue: FeatureQueue,
        alpha: float,
        step: int = 0,
        negatives: Negatives | None = None,
    ) -> StepOutput:
        """Losses within groups of `group_size` consecutive pairs, averaged over groups; changes neither teacher nor queue.

        With a global group a micro-batch is this rank's part of the only one, and the losses are such that their means over ranks are the group's.
        `step` is the optimizer step; `negatives` replaces ITM's drawn ones.
        """
        if not self.global_group and len(batch) % self.group_size:
            raise ConfigError(f"training: a micro-batch of {len(batch)} pairs is not a multiple of group_size {self.group_size}; change one of the two")
        reads = frozenset[Read]().union(*(loss.reads(alpha, step) for loss in self.losses.values()))
        group_size = len(batch) if self.global_group else self.group_size
        shared = Step(batch, self.student, teacher, queue, alpha, group_size, step, negatives, reads, global_group=self.global_group)
        fused = self._fused(shared)
        losses = {name: loss(shared, fused[name]) for name, loss in self.losses.items()}
        total = torch.stack([self.losses[name].weight * value for name, value in losses.items()]).sum()
        shared.metrics["temperature"] = shared.temperature.detach()
        image_feat, text_feat = (shared.teacher_image_feat, shared.teacher_text_feat) if "queue" in reads else (None, None)
        return StepOutput(losses, total, image_feat, text_feat, batch.image_ids if "queue_ids" in reads else None, shared.metrics)

    def _fused(self, step: Step) -> dict[str, list[Tensor]]:
        """States of every loss's rows, from one pass over all of them together."""
        wanted = {name: loss.fusion_rows(step) for name, loss in self.losses.items()}
        states = iter(step.fuse([rows for of_loss in wanted.values() for rows in of_loss]))
        return {name: list(islice(states, len(rows))) for name, rows in wanted.items()}
