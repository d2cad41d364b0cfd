"""Everything the losses of one micro-batch share, each computed once and only when a loss asks for it."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from training.batch import Batch
from training.feature_queue import FeatureQueue
from training.model import Albef

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.001, 0.5


class Negatives(NamedTuple):
    """For each text the row of an image that is not its own, and for each image the row of such a text (rows of the micro-batch)."""

    image_for_text: Int[Tensor, " b"]
    text_for_image: Int[Tensor, " b"]


class FusionRows(NamedTuple):
    """Pairs a loss wants fused: row i is text `text[i]` beside picture `image[i]`; texts B..2B-1 are the masked ones."""

    text: Int[Tensor, " rows"]
    image: Int[Tensor, " rows"]


@dataclass(frozen=True)
class Step:
    """One micro-batch of M pairs in n groups of G consecutive ones, seen by student and teacher."""

    batch: Batch
    student: Albef
    teacher: Albef
    queue: FeatureQueue
    alpha: float  # weight of the teacher's soft targets
    group_size: int
    step: int  # optimizer step, counted from 0
    given_negatives: Negatives | None = None  # instead of the drawn ones
    metrics: dict[str, Tensor] = field(default_factory=dict)  # what losses want logged; detached scalars on the device

    @property
    def num_groups(self) -> int:
        return len(self.batch) // self.group_size

    @cached_property
    def rows(self) -> Int[Tensor, " b"]:
        """0..M-1 on the device."""
        return torch.arange(len(self.batch), device=self.batch.input_ids.device)

    @cached_property
    def temperature(self) -> Float[Tensor, ""]:
        """Clamped here as a function: under ZeRO the parameter's master copy is elsewhere and an in-place clamp would not stick."""
        return self.student.temperature.float().clamp(MIN_TEMPERATURE, MAX_TEMPERATURE).squeeze(0)

    @cached_property
    def pixels(self) -> Float[Tensor, "b 3 r r"]:
        return self.batch.pixels(self.student.image_projection.weight.dtype)

    @cached_property
    def text_ids(self) -> Int[Tensor, "b2 l"]:
        """Clean texts, then masked ones: one pass through the text layers serves both."""
        return torch.cat([self.batch.input_ids, self.batch.masked_ids])

    @cached_property
    def attention_mask(self) -> Int[Tensor, "b2 l"]:
        return torch.cat([self.batch.attention_mask, self.batch.attention_mask])

    @cached_property
    def image_embeds(self) -> Float[Tensor, "b n d"]:
        return self.student.encode_image(self.pixels)

    @cached_property
    def text_embeds(self) -> Float[Tensor, "b2 l h"]:
        """Student states of the clean texts, then of the masked ones."""
        return self.student.encode_text(self.text_ids, self.attention_mask)

    @cached_property
    def image_feat(self) -> Float[Tensor, "b e"]:
        return self.student.image_feat(self.image_embeds).float()

    @cached_property
    def text_feat(self) -> Float[Tensor, "b e"]:
        return self.student.text_feat(self.text_embeds[: len(self.batch)]).float()

    @cached_property
    def teacher_image_embeds(self) -> Float[Tensor, "b n d"]:
        with torch.no_grad():
            return self.teacher.encode_image(self.pixels)

    @cached_property
    def teacher_text_embeds(self) -> Float[Tensor, "b2 l h"]:
        """Teacher states of the clean texts, then of the masked ones."""
        with torch.no_grad():
            return self.teacher.encode_text(self.text_ids, self.attention_mask)

    @cached_property
    def teacher_image_feat(self) -> Float[Tensor, "b e"]:
        with torch.no_grad():
            return self.teacher.image_feat(self.teacher_image_embeds).float()

    @cached_property
    def teacher_text_feat(self) -> Float[Tensor, "b e"]:
        with torch.no_grad():
            return self.teacher.text_feat(self.teacher_text_embeds[: len(self.batch)]).float()

    @cached_property
    def sim_i2t(self) -> Float[Tensor, "b k"]:
        """Student images against the teacher's texts of their group, then the queue; over the temperature. K = G + Q."""
        return self._similarities(self.image_feat, self.teacher_text_feat, self.queue.text)

    @cached_property
    def sim_t2i(self) -> Float[Tensor, "b k"]:
        """Student texts against the teacher's images of their group, then the queue; over the temperature. K = G + Q."""
        return self._similarities(self.text_feat, self.teacher_image_feat, self.queue.image)

    @cached_property
    def teacher_sim_i2t(self) -> Float[Tensor, "b k"]:
        return self._similarities(self.teacher_image_feat, self.teacher_text_feat, self.queue.text).detach()

    @cached_property
    def teacher_sim_t2i(self) -> Float[Tensor, "b k"]:
        return self._similarities(self.teacher_text_feat, self.teacher_image_feat, self.queue.image).detach()

    @cached_property
    def teacher_mlm_logits(self) -> Float[Tensor, "s v"]:
        """The teacher's predictions at the selected positions of the masked texts."""
        m = len(self.batch)
        with torch.no_grad():
            fused = self.teacher.fuse(self.teacher_text_embeds[m:], self.batch.attention_mask, self.teacher_image_embeds)
            logits: Tensor = self.teacher.mlm_head(self.selected(fused))
            return logits

    def selected(self, hidden: Float[Tensor, "b l h"]) -> Float[Tensor, "s h"]:
        """The states at the positions MLM predicts: the vocabulary-wide head never sees the other 85 %."""
        assert self.batch.mlm_positions is not None
        return hidden.flatten(0, 1).index_select(0, self.batch.mlm_positions)

    def fuse(self, rows: FusionRows) -> Float[Tensor, "rows l h"]:
        """One pass of the student's fusion layers over the wanted pairs."""
        texts = self.text_embeds.index_select(0, rows.text)
        return self.student.fuse(texts, self.attention_mask.index_select(0, rows.text), self.image_embeds, rows.image)

    def _similarities(self, queries: Float[Tensor, "b e"], keys: Float[Tensor, "b e"], queue: Float[Tensor, "q e"]) -> Float[Tensor, "b k"]:
        with torch.autocast(queries.device.type, enabled=False):  # bf16 resolves a cosine to 0.004, which the temperature magnifies to 0.06 in the logits
            grouped = torch.bmm(self._grouped(queries), self._grouped(keys).transpose(1, 2)).flatten(0, 1)
            return torch.cat([grouped, queries @ queue.T], dim=1) / self.temperature

    def _grouped(self, rows: Float[Tensor, "b e"]) -> Float[Tensor, "n g e"]:
        return rows.view(self.num_groups, self.group_size, -1)
