"""Image-text contrastive learning (ITC): a pair's own features must be closer than those of the group and of the queue."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from training.passes import FusionRows
from training.step import Read, Step


@dataclass(frozen=True)
class ImageTextContrastive:
    """Cross-entropy in both directions against the pair itself, softened by the teacher's similarities with weight alpha.

    Without `soft_targets` alpha is 0 here: the rows of the paper's Table 1 before "MoD" (momentum distillation).
    """

    weight: float = 1.0
    soft_targets: bool = True
    min_group_size: ClassVar[int] = 1

    def reads(self, alpha: float, step: int) -> frozenset[Read]:  # noqa: ARG002 - the keys are the teacher's whatever alpha
        return frozenset({"clean", "teacher_clean", "queue"})

    def fusion_rows(self, step: Step) -> Sequence[FusionRows]:  # noqa: ARG002 - compares features, needs no fused states
        return ()

    def __call__(self, step: Step, fused: Sequence[Tensor] = ()) -> Float[Tensor, ""]:  # noqa: ARG002
        own = step.rows % step.group_size  # column of the pair itself: keys are the group's, then the queue's
        step.metrics["itc/accuracy_i2t"] = _accuracy(step.sim_i2t, own)
        step.metrics["itc/accuracy_t2i"] = _accuracy(step.sim_t2i, own)
        alpha = step.alpha if self.soft_targets else 0.0
        i2t = _soft_cross_entropy(step.sim_i2t, step.teacher_sim_i2t, own, alpha)
        t2i = _soft_cross_entropy(step.sim_t2i, step.teacher_sim_t2i, own, alpha)
        return (i2t + t2i) / 2


def _soft_cross_entropy(sim: Float[Tensor, "b k"], teacher_sim: Float[Tensor, "b k"], own: Int[Tensor, " b"], alpha: float) -> Float[Tensor, ""]:
    """Against alpha * softmax(teacher) + (1 - alpha) * the pair itself, which splits into a soft and a hard cross-entropy."""
    log_probability = sim.log_softmax(dim=1)
    hard = F.nll_loss(log_probability, own)
    soft = -(teacher_sim.softmax(dim=1) * log_probability).sum(dim=1).mean()
    return (1 - alpha) * hard + alpha * soft


def _accuracy(sim: Float[Tensor, "b k"], own: Int[Tensor, " b"]) -> Float[Tensor, ""]:
    return (sim.detach().argmax(dim=1) == own).float().mean()
