"""ITC's cross-entropy against the group's keys, those of other ranks and the queue in pieces with an online softmax, soft targets and gradients included."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

# Similarities at one time, student's and teacher's together. On a CPU a piece stays in the cache, which is what makes it faster than the whole
# (`albef bench train --cases contrast`); on a GPU 128 MiB, so that launches do not count.
CPU_CHUNK_ELEMENTS, GPU_CHUNK_ELEMENTS = 2**18, 2**25


class PictureIds(NamedTuple):
    """Which picture each key shows or describes: equal ids are the same picture."""

    batch: Int[Tensor, " m"]  # of the micro-batch, queries and in-batch keys alike
    further: Sequence[Int[Tensor, " _"]]  # of the further keys; -1 where the queue is still filled with noise


class Contrast(NamedTuple):
    """One direction of ITC, per query."""

    loss: Float[Tensor, " m"]
    correct: Bool[Tensor, " m"]  # no key is more similar than the pair's own


def contrast(
    queries: Float[Tensor, "m e"],
    teacher_queries: Float[Tensor, "m e"] | None,
    group_keys: Float[Tensor, "m e"],
    further_keys: Sequence[Float[Tensor, "_ e"]],
    temperature: Float[Tensor, ""],
    alpha: float,
    group_size: int,
    ids: PictureIds | None = None,
    chunk_elements: int | None = None,
) -> Contrast:
    """Cross-entropy of each query over the keys of its own group and all further ones: the queue, other ranks; similarities divided by `temperature`.

    The target is alpha x the softmax of the teacher's similarities + (1 - alpha) x the pair's own key, or, with `ids`, all keys of the pair's
    picture in equal parts (the original's fine-tuning for retrieval). Gradients go to `queries` and `temperature`, as in the original; without
    `teacher_queries` alpha must be 0. Paper: equations 2 and 6. Neither autocast nor a matrix of all similarities: memory is bounded by `chunk_elements`.
    """
    assert alpha == 0 or teacher_queries is not None
    teacher = teacher_queries if alpha > 0 else None
    chunk_elements = chunk_elements or (CPU_CHUNK_ELEMENTS if queries.device.type == "cpu" else GPU_CHUNK_ELEMENTS)
    loss, correct = _Contrast.apply(queries, temperature, teacher, group_keys, further_keys, alpha, group_size, ids, chunk_elements)
    return Contrast(loss, correct)


class _Contrast(torch.autograd.Function):
    """With k = the mean of the keys under the student's softmax and k* = the mean under the target, the loss is log sum exp(s) - q.k* / t and its
    gradient (k - k*) / t: the forward pass has both means at its end, as attention with the keys for values, and the backward pass only scales.
    """

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        temperature: Tensor,
        teacher: Tensor | None,
        group_keys: Tensor,
        further_keys: Sequence[Tensor],
        alpha: float,
        group_size: int,
        ids: PictureIds | None,
        chunk_elements: int,
    ) -> tuple[Tensor, Tensor]:
        with torch.autocast(queries.device.type, enabled=False):  # bf16 resolves a cosine to 0.004, which the temperature magnifies to 0.06
            scaled = torch.stack([queries] if teacher is None else [queries, teacher]) / temperature
            over_keys, own = _over_all_keys(scaled, group_keys, further_keys, group_size, chunk_elements)
            target = group_keys if ids is None else _mean_of_same_picture(group_keys, further_keys, ids, group_size, chunk_elements)
            means = over_keys.means
            if teacher is not None:
                target = torch.lerp(target, means[1], alpha)
            highest, log_total = over_keys.highest[0, :, 0], over_keys.total[0, :, 0].log()
            loss = (highest - (scaled[0] * target).sum(dim=1)) + log_total
            ctx.save_for_backward(queries, temperature, (means[0] - target) / temperature)
        correct = own >= highest
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        queries, temperature, gradient = ctx.saved_tensors
        to_queries = loss_gradient[:, None] * gradient
        to_temperature = -(queries * to_queries).sum() / temperature
        return to_queries, to_temperature, *[None] * 7


class _OnlineSoftmax:
    """Mean of the keys under a softmax of similarities, both met piece by piece: sums are kept relative to the highest similarity so far."""

    def __init__(self, sim: Float[Tensor, "*n r c"], keys: Float[Tensor, "*k c e"]) -> None:
        self.highest = sim.amax(dim=-1, keepdim=True)
        weights = sim.sub_(self.highest).exp_()
        self.total, self.weighted = weights.sum(dim=-1, keepdim=True), weights @ keys

    def flatten(self, sides: int) -> None:
        """From [sides, groups, G, .] to [sides, M, .]."""
        self.highest, self.total, self.weighted = (state.reshape(sides, -1, state.shape[-1]) for state in (self.highest, self.total, self.weighted))

    def add(self, sim: Float[Tensor, "n r c"], keys: Float[Tensor, "c e"]) -> None:
        highest = torch.maximum(self.highest, sim.amax(dim=-1, keepdim=True))
        weights, shrink = sim.sub_(highest).exp_(), (self.highest - highest).exp_()
        self.highest = highest
        self.total.mul_(shrink).add_(weights.sum(dim=-1, keepdim=True))
        self.weighted.mul_(shrink).add_(weights @ keys)

    @property
    def means(self) -> Float[Tensor, "n r e"]:
        means: Tensor = self.weighted / self.total
        return means


def _over_all_keys(
    scaled: Float[Tensor, "n m e"], group_keys: Float[Tensor, "m e"], further_keys: Sequence[Float[Tensor, "_ e"]], group_size: int, chunk_elements: int
) -> tuple[_OnlineSoftmax, Float[Tensor, " m"]]:
    """The softmax over all keys of the student (row 0 of the first dimension) and the teacher, and each student query's similarity to its own key."""
    grouped_keys = group_keys.view(-1, group_size, group_keys.shape[1])
    in_group = scaled.view(len(scaled), -1, group_size, scaled.shape[2]) @ grouped_keys.transpose(1, 2)
    own = in_group[0].diagonal(dim1=1, dim2=2).flatten().clone()
    over_keys = _OnlineSoftmax(in_group, grouped_keys)
    over_keys.flatten(len(scaled))
    for keys in _chunks(further_keys, scaled.shape[0] * scaled.shape[1], chunk_elements):
        over_keys.add(scaled @ keys.T, keys)
    return over_keys, own


def _mean_of_same_picture(
    group_keys: Float[Tensor, "m e"], further_keys: Sequence[Float[Tensor, "_ e"]], ids: PictureIds, group_size: int, chunk_elements: int
) -> Float[Tensor, "m e"]:
    """For each query the mean of all keys of its picture, its own among them."""
    grouped = ids.batch.view(-1, group_size)
    same = (grouped[:, :, None] == grouped[:, None, :]).to(group_keys.dtype)
    total, count = (same @ group_keys.view(-1, group_size, group_keys.shape[1])).flatten(0, 1), same.sum(dim=2).flatten()
    rows = len(group_keys)
    for keys, key_ids in zip(_chunks(further_keys, rows, chunk_elements), _chunks(ids.further, rows, chunk_elements), strict=True):
        same = (ids.batch[:, None] == key_ids).to(group_keys.dtype)
        total, count = total.addmm(same, keys), count + same.sum(dim=1)
    return total / count[:, None]


def _chunks(keys: Sequence[Tensor], rows: int, chunk_elements: int) -> Iterator[Tensor]:
    """Keys in pieces whose similarities to `rows` queries have at most `chunk_elements` elements; where there are none, no pieces."""
    for some in keys:
        if len(some):
            yield from torch.split(some, max(1, chunk_elements // rows))
