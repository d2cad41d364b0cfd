"""Image-text matching (ITM): does this caption belong to this image?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from training.passes import FusionRows
from training.step import Negatives, Read, Step, at_least_fp32


@dataclass(frozen=True)
class ImageTextMatching:
    """Each pair against the same text beside a wrong picture and the same picture beside a wrong text.

    Wrong partners come from the pair's own group, the more similar (by ITC) the likelier; before optimizer step
    `hard_from_step` they are drawn uniformly; null means always.
    """

    weight: float = 1.0
    hard_from_step: int | None = 0
    min_group_size: ClassVar[int] = 2

    def reads(self, alpha: float, step: int) -> frozenset[Read]:  # noqa: ARG002 - hard negatives do not depend on alpha
        return frozenset({"clean", "teacher_clean"} if self._draws_hard(step) else {"clean"})

    def fusion_rows(self, step: Step) -> Sequence[FusionRows]:
        """M pairs as they belong together, then M texts with a wrong picture, then M pictures with a wrong text."""
        negatives = step.given_negatives or self._drawn_negatives(step)
        return FusionRows(), FusionRows(image=negatives.image_for_text), FusionRows(text=negatives.text_for_image)

    def __call__(self, step: Step, fused: Sequence[Float[Tensor, "b h"]]) -> Float[Tensor, ""]:
        logits = at_least_fp32(step.student.itm_head(torch.cat(list(fused))))
        labels = (torch.arange(len(logits), device=logits.device) < len(step.batch)).long()  # only the first M rows match
        step.metrics["itm/accuracy"] = (logits.detach().argmax(dim=1) == labels).float().mean()
        return F.cross_entropy(logits, labels)

    def _draws_hard(self, step: int) -> bool:
        return self.hard_from_step is not None and step >= self.hard_from_step

    def _drawn_negatives(self, step: Step) -> Negatives:
        first_of_group = step.rows - step.rows % step.group_size
        if self._draws_hard(step.step):
            sim_t2i, sim_i2t = step.sim_t2i, step.sim_i2t
        else:
            sim_t2i = sim_i2t = torch.zeros_like(step.batch.gumbel_i2t)
        return Negatives(
            image_for_text=first_of_group + draw_negatives(sim_t2i, step.batch.gumbel_t2i),
            text_for_image=first_of_group + draw_negatives(sim_i2t, step.batch.gumbel_i2t),
        )


def draw_negatives(sim: Float[Tensor, "b g"], gumbel: Float[Tensor, "b g"]) -> Int[Tensor, " b"]:
    """For each row a column other than its own (row % G), with probability softmax(sim) over the others: the Gumbel-max trick.

    The own column is masked before any softmax could see it: the original zeroes it afterwards, which leaves 0/0 once
    the positive saturates.
    """
    own = torch.arange(len(sim), device=sim.device) % sim.shape[1]
    noisy = sim + gumbel
    return noisy.scatter(1, own[:, None], float("-inf")).argmax(dim=1)
