"""MLM's head and cross-entropy together, in pieces of rows: logits over the whole vocabulary exist for some rows at a time only."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_ELEMENTS = 2**25  # logits at one time: 128 MiB in fp32, 1,099 rows of BERT's vocabulary


class Decoder(NamedTuple):
    """States and the layer that makes logits of them."""

    states: Float[Tensor, "s h"]
    weight: Float[Tensor, "v h"]
    bias: Float[Tensor, " v"]

    def logits(self, rows: slice, dtype: torch.dtype) -> Float[Tensor, "c v"]:
        """Products in the compute type, at least fp32 from there on."""
        product = torch.addmm(self.bias.to(dtype), self.states[rows].to(dtype), self.weight.to(dtype).T)
        return product.to(torch.promote_types(dtype, torch.float32))


class Targets(NamedTuple):
    """What S predictions are held against; see `vocabulary_cross_entropy`."""

    teacher: Decoder | None
    labels: Int[Tensor, " s"]
    row_weights: Float[Tensor, " s"]
    alpha: float


def vocabulary_cross_entropy(
    student: Decoder,
    teacher: Decoder | None,
    labels: Int[Tensor, " s"],
    row_weights: Float[Tensor, " s"],
    alpha: float,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> Float[Tensor, ""]:
    """Sum over rows of row weight x cross-entropy against alpha x the teacher's prediction + (1 - alpha) x the label; 0 for no row.

    Paper: equations 3 and 7. Gradients go to the student's states, weight and bias; without a `teacher` alpha must be 0. Matrix products run in
    the autocast type where autocast is on, softmax and sums in fp32.
    """
    assert alpha == 0 or teacher is not None
    device_type = student.states.device.type
    dtype = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else student.weight.dtype
    loss: Tensor = _VocabularyCrossEntropy.apply(*student, teacher if alpha > 0 else None, labels, row_weights, alpha, dtype, chunk_elements)
    return loss


class _VocabularyCrossEntropy(torch.autograd.Function):
    """The gradient with respect to a piece's logits is made while they are there. Of one piece it is kept; of several the parameters' gradients are
    added up at once, and the backward pass only scales them: with one piece that would cost two more walks through a matrix as large as the weight.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor,
        teacher: Decoder | None,
        labels: Tensor,
        row_weights: Tensor,
        alpha: float,
        dtype: torch.dtype,
        chunk_elements: int,
    ) -> Tensor:
        chunks = _row_chunks(len(states), len(weight), chunk_elements)
        with torch.autocast(states.device.type, enabled=False):
            student = Decoder(states.to(dtype), weight.to(dtype), bias.to(dtype))
            taught = None if teacher is None else Decoder(*(tensor.to(dtype) for tensor in teacher))
            pieces = (
                _loss_and_gradient(student.logits(rows, dtype), taught and taught.logits(rows, dtype), labels[rows], row_weights[rows], alpha)
                for rows in chunks
            )
            ctx.in_one_piece = len(chunks) == 1
            if ctx.in_one_piece:
                loss, to_logits = next(pieces)
                ctx.save_for_backward(to_logits.to(dtype), states, weight, bias)
                return loss
            total = torch.zeros((), dtype=torch.promote_types(dtype, torch.float32), device=states.device)
            gradients = [torch.zeros_like(tensor) for tensor in (states, weight, bias)]
            for rows, (loss, to_logits) in zip(chunks, pieces, strict=True):
                total += loss
                _add_gradients(gradients, to_logits.to(dtype), student, rows)
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_gradient: Tensor) -> tuple[Tensor | None, ...]:
        if not ctx.in_one_piece:
            return *(loss_gradient.to(gradient.dtype) * gradient for gradient in ctx.saved_tensors), *[None] * 6
        to_logits, states, weight, bias = ctx.saved_tensors
        with torch.autocast(states.device.type, enabled=False):
            to_logits = to_logits * loss_gradient.to(to_logits.dtype)
            to_states, to_weight = to_logits @ weight.to(to_logits.dtype), to_logits.T @ states.to(to_logits.dtype)
        return to_states.to(states.dtype), to_weight.to(weight.dtype), to_logits.sum(dim=0).to(bias.dtype), *[None] * 6


def _add_gradients(gradients: list[Tensor], to_logits: Float[Tensor, "c v"], student: Decoder, rows: slice) -> None:
    """Of the states' own rows, the weight and the bias; of bf16 factors only the products are rounded, not the sums."""
    to_states, to_weight, to_bias = gradients
    to_states[rows] = to_logits @ student.weight
    if to_weight.dtype == to_logits.dtype:
        to_weight.addmm_(to_logits.T, student.states[rows])
    else:
        to_weight += to_logits.T @ student.states[rows]
    to_bias += to_logits.sum(dim=0)


def _loss_and_gradient(
    logits: Float[Tensor, "c v"], teacher_logits: Float[Tensor, "c v"] | None, labels: Int[Tensor, " c"], row_weights: Float[Tensor, " c"], alpha: float
) -> tuple[Float[Tensor, ""], Float[Tensor, "c v"]]:
    """The rows' weighted loss and its gradient with respect to the logits, written over them."""
    weights, labels = row_weights[:, None].to(logits.dtype), labels[:, None]
    target_logit = logits.gather(1, labels)
    taught = None if teacher_logits is None else teacher_logits.softmax(dim=1)
    if taught is not None:
        target_logit = torch.lerp(target_logit, torch.linalg.vecdot(taught, logits)[:, None], alpha)
    log_total = logits.logsumexp(dim=1, keepdim=True)
    gradient = logits.sub_(log_total).exp_()
    if taught is not None:
        gradient.sub_(taught, alpha=alpha)
    gradient.scatter_add_(1, labels, torch.full_like(target_logit, alpha - 1))
    return ((log_total - target_logit) * weights).sum(), gradient.mul_(weights)


def _row_chunks(rows: int, vocabulary: int, chunk_elements: int) -> list[slice]:
    """At least one, even if empty."""
    size = max(1, chunk_elements // vocabulary)
    return [slice(start, min(start + size, rows)) for start in range(0, max(rows, 1), size)]
