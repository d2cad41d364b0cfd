"""Image-text contrastive learning (ITC): a pair's own features must be closer than those of the group and of the queue."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from training.kernels.contrast import PictureIds, contrast
from training.losses.options import Weight
from training.passes import FusionRows
from training.step import Read, Step


@dataclass(frozen=True)
class ImageTextContrastive:
    """Cross-entropy in both directions against the pair itself, softened by the teacher's similarities with weight alpha.

    Without `soft_targets` alpha is 0 here: the rows of the paper's Table 1 before "MoD" (momentum distillation). With `same_image_positives` all keys of
    the pair's picture, in its group and in the queue, are its own in equal parts, as when the original is fine-tuned for retrieval.
    """

    weight: Weight = 1.0
    soft_targets: bool = True
    same_image_positives: bool = False

    def reads(self, alpha: float, step: int) -> frozenset[Read]:  # noqa: ARG002 - the keys are the teacher's whatever alpha
        reads: frozenset[Read] = frozenset({"clean_cls", "teacher_clean", "queue"})
        return reads | {"queue_ids"} if self.same_image_positives else reads

    def fusion_rows(self, step: Step) -> Sequence[FusionRows]:  # noqa: ARG002 - compares features, needs no fused states
        return ()

    def __call__(self, step: Step, fused: Sequence[Tensor] = ()) -> Float[Tensor, ""]:  # noqa: ARG002
        alpha = step.alpha if self.soft_targets else 0.0
        image, text = step.teacher_image_feat, step.teacher_text_feat
        other_images, other_texts = (step.of_others(keys) for keys in (step.image_keys, step.text_keys))
        i2t = contrast(step.image_feat, image, text, (*other_texts, step.queue.text), step.temperature, alpha, step.group_size, self._ids(step))
        t2i = contrast(step.text_feat, text, image, (*other_images, step.queue.image), step.temperature, alpha, step.group_size, self._ids(step))
        step.metrics["itc/accuracy_i2t"] = i2t.correct.float().mean()
        step.metrics["itc/accuracy_t2i"] = t2i.correct.float().mean()
        return (i2t.loss.mean() + t2i.loss.mean()) / 2

    def _ids(self, step: Step) -> PictureIds | None:
        if not self.same_image_positives:
            return None
        assert step.batch.image_ids is not None
        return PictureIds(step.batch.image_ids, (*step.of_others(step.of_group(step.batch.image_ids)), step.queue.ids))
