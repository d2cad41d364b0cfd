"""Masked language modeling (MLM): predict the hidden words of a caption from its other words and the picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from training.passes import FusionRows
from training.step import Read, Step, at_least_fp32


@dataclass(frozen=True)
class MaskedLanguageModeling:
    """Cross-entropy against the hidden words, softened by the teacher's predictions with weight alpha.

    Without `soft_targets` alpha is 0 here: the rows of the paper's Table 1 before "MoD" (momentum distillation).
    """

    weight: float = 1.0
    soft_targets: bool = True
    min_group_size: ClassVar[int] = 1

    def reads(self, alpha: float, step: int) -> frozenset[Read]:  # noqa: ARG002 - the same at every step
        return frozenset({"masked", "teacher_masked"} if self.soft_targets and alpha > 0 else {"masked"})

    def fusion_rows(self, step: Step) -> Sequence[FusionRows]:  # noqa: ARG002 - the same at every step
        """The M masked texts, each with its own picture; of these the states that predict hidden words."""
        return (FusionRows(masked=True, states="predicted"),)

    def __call__(self, step: Step, fused: Sequence[Float[Tensor, "s h"]]) -> Float[Tensor, ""]:
        assert step.batch.mlm_positions is not None
        (states,) = fused
        logits = at_least_fp32(step.student.mlm_head(states))
        labels = step.batch.mlm_labels.flatten().index_select(0, step.batch.mlm_positions)
        alpha = step.alpha if self.soft_targets else 0.0
        token_loss = (1 - alpha) * F.cross_entropy(logits, labels, reduction="none")
        if alpha > 0:
            teacher = at_least_fp32(step.teacher_mlm_logits).softmax(dim=1)
            token_loss = token_loss - alpha * (teacher * logits.log_softmax(dim=1)).sum(dim=1)
        group = step.batch.mlm_positions // (step.batch.mlm_labels.shape[1] * step.group_size)
        return mean_over_groups(token_loss, group, step.num_groups)


def mean_over_groups(token_loss: Float[Tensor, " s"], group: Int[Tensor, " s"], num_groups: int) -> Float[Tensor, ""]:
    """The mean of each group's own mean; a group without a selected token counts as 0, where the original divides 0 by 0."""
    counts = torch.zeros(num_groups, dtype=torch.long, device=group.device).index_add(0, group, torch.ones_like(group))
    return (token_loss / counts[group]).sum() / num_groups
