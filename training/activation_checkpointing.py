"""Activation checkpointing (Chen et al. 2016, "Training deep nets with sublinear memory cost"): a block's inside is computed again in the backward pass."""

import functools

from torch import nn
from torch.utils.checkpoint import checkpoint

from training.model import Albef


def checkpoint_blocks(model: Albef) -> None:
    """In place; what a block returns stays, dropout draws the same again. Names of parameters stay, too."""
    blocks: list[nn.Module] = [*model.image_encoder.blocks, *model.text_encoder.layers, *model.fusion_encoder.layers]
    for block in blocks:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
