"""Masked language modeling (MLM): predict the hidden words of a caption from its other words and the picture."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from training.kernels.vocabulary import Targets
from training.losses.options import Weight
from training.passes import FusionRows
from training.step import Read, Step


@dataclass(frozen=True)
class MaskedLanguageModeling:
    """Cross-entropy against the hidden words, softened by the teacher's predictions with weight alpha.

    Without `soft_targets` alpha is 0 here: the rows of the paper's Table 1 before "MoD" (momentum distillation).
    """

    weight: Weight = 1.0
    soft_targets: bool = True

    def reads(self, alpha: float, step: int) -> frozenset[Read]:  # noqa: ARG002 - the same at every step
        return frozenset({"masked", "teacher_masked"} if self.soft_targets and alpha > 0 else {"masked"})

    def fusion_rows(self, step: Step) -> Sequence[FusionRows]:  # noqa: ARG002 - the same at every step
        """The M masked texts, each with its own picture; of these the states that predict hidden words."""
        return (FusionRows(masked=True, states="predicted"),)

    def __call__(self, step: Step, fused: Sequence[Float[Tensor, "s h"]]) -> Float[Tensor, ""]:
        (states,) = fused
        positions = step.batch.mlm_positions
        alpha = step.alpha if self.soft_targets else 0.0
        labels = step.batch.mlm_labels.flatten().index_select(0, positions)
        group = positions // (step.batch.mlm_labels.shape[1] * step.group_size)
        teacher = step.teacher_mlm_decoder if alpha > 0 else None
        counts = step.mean_over_ranks(tokens_of_groups(group, step.num_groups))
        loss: Tensor = step.student.mlm_head.cross_entropy(states, Targets(teacher, labels, weights_of_group_means(group, counts), alpha))
        return loss


def tokens_of_groups(group: Int[Tensor, " s"], num_groups: int) -> Float[Tensor, " n"]:
    """How many of the selected tokens each group has."""
    counts = torch.zeros(num_groups, dtype=torch.double, device=group.device)
    return counts.index_add(0, group, torch.ones_like(group, dtype=torch.double))


def weights_of_group_means(group: Int[Tensor, " s"], counts: Float[Tensor, " n"]) -> Float[Tensor, " s"]:
    """Weights that make a sum over tokens the mean over groups of each group's own mean.

    A group without a selected token counts as 0, where the original divides 0 by 0.
    """
    return 1 / (counts.index_select(0, group) * len(counts))  # in float64: the sum decides its precision
