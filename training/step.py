"""Everything the losses of one micro-batch share, each computed once and only when a loss asks for it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from training.batch import Batch
from training.feature_queue import FeatureQueue
from training.global_group import GlobalGroup
from training.kernels.vocabulary import Decoder
from training.model import Albef
from training.model_config import MAX_TEMPERATURE, MIN_TEMPERATURE
from training.passes import Candidates, FusionRows, TextStates, encode_texts, fuse, own_candidates


class Negatives(NamedTuple):
    """For each text the row of an image that is not its own, and for each image the row of such a text.

    Rows of the micro-batch, or of the global batch where that is one group.
    """

    image_for_text: Int[Tensor, " b"]
    text_for_image: Int[Tensor, " b"]


# What a loss may read of a step: student and teacher states of the clean and of the masked texts (of clean ones perhaps [CLS] alone; of the teacher's
# clean ones nobody reads more), and the feature queue without and with its pictures' ids.
Read = Literal["clean", "clean_cls", "masked", "teacher_clean", "teacher_masked", "queue", "queue_ids"]
EVERYTHING: frozenset[Read] = frozenset(get_args(Read))


@dataclass(frozen=True)
class Step:
    """One micro-batch of M pairs in n groups of G consecutive ones, seen by student and teacher.

    A group over all ranks has further pairs elsewhere: then n is 1, all G = M pairs of the micro-batch are in it, and its K = M x ranks pairs are
    keys and candidates; in every other case K is G.
    """

    batch: Batch
    student: Albef
    teacher: Albef
    queue: FeatureQueue
    alpha: float  # weight of the teacher's soft targets
    group_size: int
    step: int  # optimizer step, counted from 0
    given_negatives: Negatives | None = None  # instead of the drawn ones
    reads: frozenset[Read] = EVERYTHING  # of all losses; nothing else is computed
    metrics: dict[str, Tensor] = field(default_factory=dict)  # what losses want logged; detached scalars on the device
    global_group: GlobalGroup | None = None  # over all ranks, of which the micro-batch is one part; None where groups are whole

    @property
    def num_groups(self) -> int:
        return len(self.batch) // self.group_size

    @cached_property
    def rows(self) -> Int[Tensor, " b"]:
        """0..M-1 on the device."""
        return torch.arange(len(self.batch), device=self.batch.input_ids.device)

    @cached_property
    def own_candidates(self) -> Bool[Tensor, "b k"]:
        """Whether the j-th of row i's group is its own partner."""
        own, num_candidates = self.rows % self.group_size, self.group_size
        if self.global_group:
            own, num_candidates = own + self.global_group.first_row(num_candidates), num_candidates * self.global_group.world.world_size
        return own[:, None] == torch.arange(num_candidates, device=own.device)

    @cached_property
    def same_picture(self) -> Bool[Tensor, "b k"]:
        """Whether row i and the j-th of its group show or describe one picture."""
        assert self.batch.image_ids is not None
        own, group = (ids.view(self.num_groups, -1) for ids in (self.batch.image_ids, self.of_group(self.batch.image_ids)))
        return (own[:, :, None] == group[:, None, :]).flatten(0, 1)

    @cached_property
    def temperature(self) -> Float[Tensor, ""]:
        """Clamped here as a function: under ZeRO the parameter's master copy is elsewhere and an in-place clamp would not stick."""
        return at_least_fp32(self.student.temperature).clamp(MIN_TEMPERATURE, MAX_TEMPERATURE).squeeze(0)

    @cached_property
    def pixels(self) -> Float[Tensor, "b 3 r r"]:
        return self.batch.pixels(self.student.image_projection.weight.dtype)

    @cached_property
    def image_embeds(self) -> Float[Tensor, "b n d"]:
        return self.student.encode_image(self.pixels, self.batch.kept_patches)

    @cached_property
    def texts(self) -> TextStates:
        whole, cls = "clean" in self.reads, "clean_cls" in self.reads
        return encode_texts(self.student, self.batch, clean=whole or cls, masked="masked" in self.reads, clean_cls_only=not whole)

    @cached_property
    def image_feat(self) -> Float[Tensor, "b e"]:
        return at_least_fp32(self.student.image_feat(self.image_embeds))

    @cached_property
    def text_feat(self) -> Float[Tensor, "b e"]:
        return _text_feat(self.student, self.texts)

    @cached_property
    def teacher_image_embeds(self) -> Float[Tensor, "b n d"]:
        with torch.no_grad():
            return self.teacher.encode_image(self.pixels)

    @cached_property
    def teacher_texts(self) -> TextStates:
        with torch.no_grad():
            return encode_texts(self.teacher, self.batch, clean="teacher_clean" in self.reads, masked="teacher_masked" in self.reads, clean_cls_only=True)

    @cached_property
    def teacher_image_feat(self) -> Float[Tensor, "b e"]:
        with torch.no_grad():
            return at_least_fp32(self.teacher.image_feat(self.teacher_image_embeds))

    @cached_property
    def teacher_text_feat(self) -> Float[Tensor, "b e"]:
        with torch.no_grad():
            return _text_feat(self.teacher, self.teacher_texts)

    @cached_property
    def image_keys(self) -> Float[Tensor, "n e"]:
        """The teacher's images of all groups, those of other ranks among them."""
        return self.of_group(self.teacher_image_feat)

    @cached_property
    def text_keys(self) -> Float[Tensor, "n e"]:
        """The teacher's texts of all groups, those of other ranks among them."""
        return self.of_group(self.teacher_text_feat)

    @cached_property
    def sim_i2t(self) -> Float[Tensor, "b k"]:
        """Student images against the teacher's texts of their group, over the temperature; what hard negatives are drawn by, without a gradient."""
        return self._in_group(self.image_feat, self.text_keys)

    @cached_property
    def sim_t2i(self) -> Float[Tensor, "b k"]:
        """Student texts against the teacher's images of their group, over the temperature; what hard negatives are drawn by, without a gradient."""
        return self._in_group(self.text_feat, self.image_keys)

    @cached_property
    def teacher_predicted(self) -> Float[Tensor, "s h"]:
        """The teacher's fused states at the positions MLM predicts."""
        with torch.no_grad():
            (states,) = fuse(self.teacher, self.batch, self.teacher_texts, self.teacher_image_embeds, [FusionRows(masked=True, states="predicted")])
            return states

    @cached_property
    def teacher_mlm_decoder(self) -> Decoder:
        """What the teacher predicts the selected positions of the masked texts from."""
        with torch.no_grad():
            decoder: Decoder = self.teacher.mlm_head.decoder_of(self.teacher_predicted)
            return decoder

    @cached_property
    def candidates(self) -> Candidates:
        """The texts that can take another's place."""
        if self.global_group is None:
            return own_candidates(self.batch, self.texts)
        assert self.texts.clean is not None
        return self.global_group.texts(self.batch.packing.tokens.pad(self.texts.clean), self.batch.attention_mask)

    def fuse(self, wanted: Sequence[FusionRows]) -> list[Tensor]:
        """One pass of the student's fusion layers over the wanted rows; their states in the same order."""
        if not wanted:
            return []
        candidates = self.candidates if any(rows.text is not None for rows in wanted) else None
        return fuse(self.student, self.batch, self.texts, self.image_embeds, wanted, candidates)

    def of_group(self, rows: Tensor) -> Tensor:
        """The same rows, without a gradient, of all pairs of the groups: those of other ranks beside the own where the group is global."""
        return self.global_group.gather(rows) if self.global_group else rows

    def of_others(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Of these, those of other ranks."""
        return self.global_group.others(rows) if self.global_group else ()

    def mean_over_ranks(self, count: Tensor) -> Tensor:
        """Of what is counted in a global group; a mean over ranks of sums divided by it is the mean over the whole group."""
        return self.global_group.mean(count) if self.global_group else count

    def _in_group(self, queries: Float[Tensor, "b e"], keys: Float[Tensor, "n e"]) -> Float[Tensor, "b k"]:
        with torch.autocast(queries.device.type, enabled=False):  # as ITC
            grouped, grouped_keys = (rows.detach().view(self.num_groups, -1, rows.shape[1]) for rows in (queries, keys))
            return torch.bmm(grouped, grouped_keys.transpose(1, 2)).flatten(0, 1) / self.temperature.detach()


def at_least_fp32(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """What a softmax reads: bf16 resolves too little, and float64 stays what it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _text_feat(model: Albef, texts: TextStates) -> Float[Tensor, "b e"]:
    assert texts.cls is not None
    return at_least_fp32(model.text_feat(texts.cls[:, None]))
