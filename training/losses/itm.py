"""Image-text matching (ITM): does this caption belong to this image?"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from training.step import FusionRows, Negatives, Step


@dataclass(frozen=True)
class ImageTextMatching:
    """Each pair against the same text beside a wrong picture and the same picture beside a wrong text.

    Wrong partners come from the pair's own group, the more similar (by ITC) the likelier; before optimizer step
    `hard_from_step` they are drawn uniformly; null means always.
    """

    weight: float = 1.0
    hard_from_step: int | None = 0
    min_group_size: ClassVar[int] = 2

    def fusion_rows(self, step: Step) -> FusionRows:
        """M pairs as they belong together, then M texts with a wrong picture, then M pictures with a wrong text."""
        negatives = step.given_negatives or self._drawn_negatives(step)
        return FusionRows(
            text=torch.cat([step.rows, step.rows, negatives.text_for_image]),
            image=torch.cat([step.rows, negatives.image_for_text, step.rows]),
        )

    def __call__(self, step: Step, fused: Float[Tensor, "rows l h"] | None) -> Float[Tensor, ""]:
        assert fused is not None
        logits = step.student.itm_head(fused[:, 0]).float()
        labels = (torch.arange(len(logits), device=logits.device) < len(step.batch)).long()  # only the first M rows match
        step.metrics["itm/accuracy"] = (logits.detach().argmax(dim=1) == labels).float().mean()
        return F.cross_entropy(logits, labels)

    def _drawn_negatives(self, step: Step) -> Negatives:
        first_of_group = step.rows - step.rows % step.group_size
        uniform = torch.zeros_like(step.batch.gumbel_i2t)
        if self.hard_from_step is None or step.step < self.hard_from_step:
            sim_t2i = sim_i2t = uniform
        else:
            sim_t2i, sim_i2t = (sim.detach()[:, : step.group_size] for sim in (step.sim_t2i, step.sim_i2t))
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
