"""A student, a teacher and batches small enough for a step in milliseconds."""

import dataclasses

import numpy as np
import torch

from training.batch import Batch
from training.losses import LOSSES
from training.model import Albef
from training.model_config import ModelConfig
from training.objective import Pretrainer

TINY = ModelConfig(
    image_size=32, vision_width=32, vision_depth=1, vision_heads=2, text_hidden=24, text_heads=2, text_layers=1, fusion_layers=2, text_intermediate=48,
    vocab_size=60, max_positions=16, hidden_dropout=0.0, attention_dropout=0.0, embed_dim=8, init_std=0.2,
)  # fmt: skip
CLS, MASK = 2, 4


def models() -> tuple[Albef, Albef]:
    torch.manual_seed(0)
    return Albef(TINY), Albef(TINY).requires_grad_(False).eval()


def make_batch(b: int, group_size: int, seed: int = 0, length: int = 7) -> Batch:
    torch.manual_seed(100 + seed)
    lengths = torch.randint(2, length + 1, (b,))
    attention_mask = (torch.arange(length) < lengths[:, None]).long()
    input_ids = torch.randint(5, TINY.vocab_size, (b, length)) * attention_mask
    input_ids[:, 0] = CLS
    selected = (torch.rand(b, length) < 0.4) & attention_mask.bool() & (input_ids != CLS)
    gumbel_i2t, gumbel_t2i = -torch.log(-torch.log(torch.rand(2, b, group_size)))
    return Batch(
        images=torch.randint(0, 256, (b, 3, 32, 32), dtype=torch.uint8),
        input_ids=input_ids,
        attention_mask=attention_mask,
        masked_ids=torch.where(selected, MASK, input_ids),
        mlm_labels=torch.where(selected, input_ids, -100),
        gumbel_i2t=gumbel_i2t,
        gumbel_t2i=gumbel_t2i,
        item_keys=np.arange(b, dtype=np.uint64),
        sample_keys=[f"{i:05d}" for i in range(b)],
        image_ids=torch.arange(b),
    )


def ragged_batch(b: int, group_size: int) -> Batch:
    """Half padding; every fourth text is empty ([CLS] alone), every third has no selected token."""
    batch = make_batch(b, group_size, length=12)
    lengths = 2 + 5 * torch.arange(b) % 11
    lengths[::4] = 1
    mask = (torch.arange(12) < lengths[:, None]).long()
    labels = torch.where(mask.bool(), batch.mlm_labels, -100)
    labels[::3] = -100
    ids = torch.where(mask.bool(), batch.input_ids.clamp(min=5), 0).index_fill(1, torch.tensor(0), CLS)
    masked = torch.where(labels != -100, MASK, ids)
    return dataclasses.replace(batch, input_ids=ids, attention_mask=mask, masked_ids=masked, mlm_labels=labels)


def pretrainer(student: Albef, group_size: int, **options: dict[str, object]) -> Pretrainer:
    return Pretrainer(student, {name: loss(**options.get(name, {})) for name, loss in LOSSES.items()}, group_size)
