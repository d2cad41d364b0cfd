"""The image encoder from and to DeiT/timm checkpoints, whose parameter names it shares."""

import logging
import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pipeline.core.errors import ConfigError
from training.model import Albef
from training.model_config import HEAD_WIDTH, ModelConfig
from training.vision import resized_positions
from training.weights.files import SUFFIXES, State, load_strictly, read_weights
from training.weights.hub import from_hub
from training.weights.published import parameter_shapes

log = logging.getLogger(__name__)
EXPECTED = "a checkpoint file or a model of timm"
HEADS = ("head.", "head_dist.", "pre_logits.")
ROOT = "image_encoder."


def load_timm_vit(model: Albef, path_or_name: str) -> None:
    """Load the image encoder from a DeiT/timm checkpoint file or a timm model's pre-trained weights; classifier heads are left out.

    Position embeddings are resized to the model's grid.

    Raises:
        ConfigError: the timm model has another number of attention heads, which no shape would show.
        DataError: no such file or model, unreachable hub, or weights of another architecture.
    """
    if path_or_name.endswith(SUFFIXES):
        state = read_weights(path_or_name)
        _warn_of_heads(path_or_name, model.config)
    else:
        _check_heads(path_or_name, model.config)
        state = _timm_state(path_or_name)
    state = {name: value for name, value in state.items() if not name.startswith(HEADS)}
    load_strictly(model.image_encoder, with_positions_resized(state, "pos_embed", model.config.num_patches, path_or_name), path_or_name)


def timm_state(weights: Mapping[str, Tensor]) -> State:
    """The image encoder of our weights as timm names it; there is no classifier, so timm loads it with num_classes=0."""
    return {name.removeprefix(ROOT): value for name, value in sorted(weights.items()) if name.startswith(ROOT)}


def is_timm_vit(state: Mapping[str, Tensor]) -> bool:
    return "patch_embed.proj.weight" in state and "blocks.0.attn.qkv.weight" in state


def encoder_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Of every parameter of the image encoder, by timm's name."""
    return {name.removeprefix(ROOT): shape for name, shape in parameter_shapes(config).items() if name.startswith(ROOT)}


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


def _warn_of_heads(path: str, config: ModelConfig) -> None:
    """A file does not say into how many heads its width is split."""
    if (width := config.vision_width // config.vision_heads) != HEAD_WIDTH:
        log.warning(
            "%s: taken as trained with training.model.vision_heads %d, which no file says; heads are then %d wide, those of DeiT and of timm's ViTs are %d",
            path, config.vision_heads, width, HEAD_WIDTH,
        )  # fmt: skip


def _check_heads(name: str, config: ModelConfig) -> None:
    """Before the hub is asked for gigabytes; what differs in shape is told later, by the tensors."""
    theirs = from_hub(name, EXPECTED, lambda: _timm_model(name, pretrained=False))
    heads = theirs.blocks[0].attn.num_heads if "blocks.0.attn.qkv.weight" in theirs.state_dict() else config.vision_heads
    if theirs.num_features == config.vision_width and heads != config.vision_heads:
        raise ConfigError(f"training.model.vision_heads is {config.vision_heads}, but training.init.vision {name} has {heads}; set it to that")


def _timm_state(name: str) -> State:
    state: State = from_hub(name, EXPECTED, lambda: _timm_model(name, pretrained=True).state_dict())
    return state


def _timm_model(name: str, *, pretrained: bool) -> Any:
    import timm  # takes seconds to import and is needed here alone

    return timm.create_model(name, pretrained=pretrained, num_classes=0)
