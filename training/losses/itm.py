"""Image-text matching (ITM): does this caption belong to this image?"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from training.losses.options import OptimizerStep, Weight
from training.passes import FusionRows
from training.step import Negatives, Read, Step, at_least_fp32


@dataclass(frozen=True)
class ImageTextMatching:
    """Each pair against the same text beside a wrong picture and the same picture beside a wrong text.

    Wrong partners come from the pair's own group, the more similar (by ITC) the likelier; before optimizer step
    `hard_from_step` they are drawn uniformly; null means always. Without `same_image_negatives` other captions of the pair's picture are no wrong ones.
    A pair whose group has no wrong partner for it (it is alone, or all show one picture) is counted as 0 in its two wrong places.
    """

    weight: Weight = 1.0
    hard_from_step: OptimizerStep | None = 0
    same_image_negatives: bool = True

    def reads(self, alpha: float, step: int) -> frozenset[Read]:  # noqa: ARG002 - hard negatives do not depend on alpha
        return frozenset({"clean", "teacher_clean"} if self._draws_hard(step) else {"clean"})

    def fusion_rows(self, step: Step) -> Sequence[FusionRows]:
        """M pairs as they belong together, then M texts with a wrong picture, then M pictures with a wrong text.

        In a global group the second ones are K texts of any rank, whose wrong picture this rank has: a text is the smaller one to send.
        """
        negatives = step.given_negatives or self._drawn_negatives(step)
        wrong_pictures = FusionRows(image=negatives.image_for_text)
        if step.global_group:
            without = self._same(step).all(dim=1)
            texts, pictures = step.global_group.texts_for_own_pictures(negatives.image_for_text.masked_fill(without, -1))
            wrong_pictures = FusionRows(text=texts, image=pictures)
        return FusionRows(), wrong_pictures, FusionRows(text=negatives.text_for_image)

    def __call__(self, step: Step, fused: Sequence[Float[Tensor, "_ h"]]) -> Float[Tensor, ""]:
        logits = at_least_fp32(step.student.itm_head(torch.cat(list(fused))))
        has_negative = ~self._same(step).all(dim=1)
        wrong_pictures = has_negative if step.global_group is None else has_negative.new_ones(len(fused[1]))
        counted = torch.cat([torch.ones_like(has_negative), wrong_pictures, has_negative])
        labels = (torch.arange(len(logits), device=logits.device) < len(step.batch)).long()  # only the first M rows match
        right = (logits.detach().argmax(dim=1) == labels) & counted
        step.metrics["itm/accuracy"] = right.sum() / step.mean_over_ranks(counted.sum())
        losses = F.cross_entropy(logits, labels, reduction="none") * counted
        return losses.sum() / (3 * len(step.batch))  # over 3 rows a pair, so that it does not depend on who is in a micro-batch

    def _draws_hard(self, step: int) -> bool:
        return self.hard_from_step is not None and step >= self.hard_from_step

    def _drawn_negatives(self, step: Step) -> Negatives:
        first_of_group = step.rows - step.rows % step.group_size
        if self._draws_hard(step.step):
            sim_t2i, sim_i2t = step.sim_t2i, step.sim_i2t
        else:
            sim_t2i = sim_i2t = torch.zeros_like(step.batch.gumbel_i2t)
        return Negatives(
            image_for_text=first_of_group + draw_negatives(sim_t2i, step.batch.gumbel_t2i, self._same(step)),
            text_for_image=first_of_group + draw_negatives(sim_i2t, step.batch.gumbel_i2t, self._same(step)),
        )

    def _same(self, step: Step) -> Bool[Tensor, "b k"]:
        """Whether row i's partner and the j-th of its group belong together: j is i itself or, where that counts, shows the same picture."""
        return step.own_candidates if self.same_image_negatives else step.same_picture


def draw_negatives(sim: Float[Tensor, "b g"], gumbel: Float[Tensor, "b g"], same: Bool[Tensor, "b g"]) -> Int[Tensor, " b"]:
    """For each row a column that is not the `same`, with probability softmax(sim) over these: the Gumbel-max trick; column 0 where there is none.

    The row's own is masked before any softmax could see it: the original zeroes it afterwards, which leaves 0/0 once
    the positive saturates.
    """
    return (sim + gumbel).masked_fill(same, float("-inf")).argmax(dim=1)
