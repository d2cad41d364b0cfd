"""One training step as the original takes it, pass by pass: what the fused step must equal, and is measured against.

Attention kernels, batched draws, optimizer and parameters are those of the fused step; the passes are the original's (its forward method).
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

from training.batch import Batch
from training.feature_queue import FeatureQueue
from training.model import Albef
from training.model_config import MAX_TEMPERATURE, MIN_TEMPERATURE
from training.step import Negatives, at_least_fp32


class PlainOutput(NamedTuple):
    """Unweighted losses by name, and the teacher's features for the queue, [B, E]."""

    losses: dict[str, Tensor]
    teacher_image_feat: Tensor
    teacher_text_feat: Tensor


def plain_losses(student: Albef, teacher: Albef, queue: FeatureQueue, batch: Batch, alpha: float, negatives: Negatives | None = None) -> PlainOutput:
    """ITC, ITM and MLM of one batch that is one group; `negatives` replaces the drawn ones.

    Every pass separately on padded texts, similarities to a copy of the whole queue, the word head on all positions.
    """
    mask, images = batch.attention_mask, batch.pixels(student.image_projection.weight.dtype)
    image_embeds, text_embeds = student.encode_image(images), student.encode_text(batch.input_ids, mask)
    with torch.no_grad():
        teacher_image_embeds, teacher_text_embeds = teacher.encode_image(images), teacher.encode_text(batch.input_ids, mask)
        image_keys, text_keys = _features(teacher, teacher_image_embeds, teacher_text_embeds)
    queries = _features(student, image_embeds, text_embeds)
    with torch.autocast(images.device.type, enabled=False):
        temperature = student.temperature.clamp(MIN_TEMPERATURE, MAX_TEMPERATURE)
        all_text, all_image = torch.cat([text_keys, queue.text.clone()]), torch.cat([image_keys, queue.image.clone()])
        sim_i2t, itc_i2t = _contrast(queries[0], image_keys, all_text, temperature, alpha)
        sim_t2i, itc_t2i = _contrast(queries[1], text_keys, all_image, temperature, alpha)
    negatives = negatives or Negatives(_drawn(sim_t2i), _drawn(sim_i2t))
    losses = {
        "itc": (itc_i2t + itc_t2i) / 2,
        "itm": _matching(student, text_embeds, mask, image_embeds, negatives),
        "mlm": _masked_language(student, teacher, batch, image_embeds, teacher_image_embeds, alpha),
    }
    return PlainOutput(losses, image_keys, text_keys)


def plain_step(
    student: Albef,
    teacher: Albef,
    queue: FeatureQueue,
    batch: Batch,
    alpha: float,
    optimizer: Optimizer,
    momentum: float,
    autocast: AbstractContextManager[Any] | None = None,
) -> dict[str, Tensor]:
    """Losses, under `autocast`, backward pass, optimizer, then the teacher's moving average tensor by tensor and the queue."""
    with autocast or nullcontext():
        output = plain_losses(student, teacher, queue, batch, alpha)
    optimizer.zero_grad()
    torch.autograd.backward(torch.stack(list(output.losses.values())).sum())
    optimizer.step()
    age(teacher, student, momentum)
    queue.push(output.teacher_image_feat, output.teacher_text_feat)
    return output.losses


@torch.no_grad()
def age(teacher: Albef, student: Albef, momentum: float) -> None:
    """theta_m <- m * theta_m + (1 - m) * theta in a new tensor each."""
    for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
        slow.data = slow.data * momentum + fast.data * (1 - momentum)


def _features(model: Albef, image_embeds: Tensor, text_embeds: Tensor) -> tuple[Tensor, Tensor]:
    return at_least_fp32(model.image_feat(image_embeds)), at_least_fp32(model.text_feat(text_embeds))


def _contrast(query: Tensor, teacher_query: Tensor, keys: Tensor, temperature: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Similarities over the temperature [B, B + Q] and one direction of ITC."""
    hard = torch.eye(len(query), len(keys), dtype=query.dtype, device=query.device)
    target = alpha * (teacher_query @ keys.T / temperature).softmax(dim=1).detach() + (1 - alpha) * hard
    sim = query @ keys.T / temperature
    return sim, -(target * sim.log_softmax(dim=1)).sum(dim=1).mean()


def _drawn(sim: Tensor) -> Tensor:
    """For each row another row's index, with the softmax of the in-batch similarities for probability."""
    own = torch.eye(len(sim), dtype=torch.bool, device=sim.device)
    others = sim.detach()[:, : len(sim)].masked_fill(own, float("-inf"))
    return torch.multinomial(others.softmax(dim=1), 1).squeeze(1)


def _matching(student: Albef, text_embeds: Tensor, mask: Tensor, image_embeds: Tensor, negatives: Negatives) -> Tensor:
    images = torch.cat([image_embeds[negatives.image_for_text], image_embeds])
    texts = torch.cat([text_embeds, text_embeds[negatives.text_for_image]])
    masks = torch.cat([mask, mask[negatives.text_for_image]])
    positive, negative = student.fuse(text_embeds, mask, image_embeds), student.fuse(texts, masks, images)
    logits = student.itm_head(torch.cat([positive[:, 0], negative[:, 0]]))
    labels = torch.tensor([1] * len(positive) + [0] * len(negative), device=logits.device)
    loss: Tensor = F.cross_entropy(logits, labels)
    return loss


def _masked_language(student: Albef, teacher: Albef, batch: Batch, image_embeds: Tensor, teacher_image_embeds: Tensor, alpha: float) -> Tensor:
    mask, chosen = batch.attention_mask, batch.mlm_labels != -100
    with torch.no_grad():
        taught = teacher.mlm_head(teacher.fuse(teacher.encode_text(batch.masked_ids, mask), mask, teacher_image_embeds)).softmax(dim=2)
    logits = student.mlm_head(student.fuse(student.encode_text(batch.masked_ids, mask), mask, image_embeds))
    hard = F.cross_entropy(logits.flatten(0, 1), batch.mlm_labels.flatten(), ignore_index=-100)
    soft = -(taught * logits.log_softmax(dim=2)).sum(dim=2)[chosen].mean()
    loss: Tensor = (1 - alpha) * hard + alpha * soft
    return loss
