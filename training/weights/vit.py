"""The image encoder from and to DeiT/timm checkpoints, whose parameter names it shares."""

import logging
import math
from collections.abc import Mapping

from torch import Tensor

from training.model import Albef
from training.vision import resized_positions
from training.weights.files import SUFFIXES, State, load_strictly, read_weights
from training.weights.hub import from_hub

log = logging.getLogger(__name__)
HEADS = ("head.", "head_dist.", "pre_logits.")
ROOT = "image_encoder."


def load_timm_vit(model: Albef, path_or_name: str) -> None:
    """Load the image encoder from a DeiT/timm checkpoint file or a timm model's pre-trained weights; classifier heads are left out.

    Position embeddings are resized to the model's grid.

    Raises:
        DataError: no such file or model, unreachable hub, or weights of another architecture.
    """
    state = read_weights(path_or_name) if path_or_name.endswith(SUFFIXES) else _timm_state(path_or_name)
    state = {name: value for name, value in state.items() if not name.startswith(HEADS)}
    load_strictly(model.image_encoder, with_positions_resized(state, "pos_embed", model.config.num_patches, path_or_name), path_or_name)


def timm_state(weights: Mapping[str, Tensor]) -> State:
    """The image encoder of our weights as timm names it; there is no classifier, so timm loads it with num_classes=0."""
    return {name.removeprefix(ROOT): value for name, value in sorted(weights.items()) if name.startswith(ROOT)}


def is_timm_vit(state: Mapping[str, Tensor]) -> bool:
    return "patch_embed.proj.weight" in state and "blocks.0.attn.qkv.weight" in state


def with_positions_resized(state: Mapping[str, Tensor], name: str, num_patches: int, origin: str) -> State:
    """The state with the position embeddings `name` on another square grid, said in the log; anything that is no square grid stays, and will not fit."""
    positions = state.get(name)
    if positions is None or positions.ndim != 3 or positions.shape[1] - 1 == num_patches:
        return dict(state)
    old, new = math.isqrt(max(0, positions.shape[1] - 1)), math.isqrt(num_patches)
    if old == 0 or old * old != positions.shape[1] - 1:
        return dict(state)
    log.info("%s: position embeddings resized from %d x %d to %d x %d patches, bicubic", origin, old, old, new, new)
    return {**state, name: resized_positions(positions, num_patches)}


def _timm_state(name: str) -> State:
    import timm  # takes seconds to import and is needed here alone

    def load() -> State:
        state: State = timm.create_model(name, pretrained=True, num_classes=0).state_dict()
        return state

    return from_hub(name, "a checkpoint file or a model of timm", load)
