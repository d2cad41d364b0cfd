"""Sizes: the paper's parameter counts, larger image encoders, other BERTs, and sizes that contradict each other."""

from typing import Any

import pytest
import torch
from torch import nn

from training.model import Albef
from training.model_config import ModelConfig

VIT_L_16 = {"vision_width": 1024, "vision_depth": 24, "vision_heads": 16}
VIT_S_16 = {"vision_width": 384, "vision_depth": 12, "vision_heads": 6}
BERT_LARGE = {"text_hidden": 1024, "text_heads": 16, "text_layers": 12, "fusion_layers": 12, "text_intermediate": 4096}
MINILM_L6 = {"text_hidden": 384, "text_heads": 12, "text_layers": 3, "fusion_layers": 3, "text_intermediate": 1536}


def on_meta(**sizes: Any) -> Albef:
    """The model without memory for its weights."""
    with torch.device("meta"):
        return Albef(ModelConfig(**sizes))


def millions(*modules: nn.Module) -> float:
    """Of distinct trainable parameters; tied ones count once."""
    distinct = {id(parameter): parameter.numel() for module in modules for parameter in module.parameters() if parameter.requires_grad}
    return sum(distinct.values()) / 1e6


def bert_of(model: Albef) -> tuple[nn.Module, ...]:
    return model.text_encoder, model.fusion_encoder, model.mlm_head


def test_the_papers_model_has_the_papers_number_of_parameters() -> None:
    model = on_meta()
    assert round(millions(model.image_encoder), 1) == 85.8
    assert round(millions(*bert_of(model)), 1) == 123.7
    assert round(millions(model), 1) == 209.9


@pytest.mark.parametrize(("sizes", "published"), [(VIT_L_16, 303.3), (VIT_S_16, 21.7)])
def test_another_vit_has_its_published_size_beside_an_unchanged_bert(sizes: dict[str, int], published: float) -> None:
    model = on_meta(image_size=224, **sizes)  # the published sizes are those of 224 px, without the classifier
    assert round(millions(model.image_encoder), 1) == published
    cross_attention = 6 * 2 * 768 * (sizes["vision_width"] - 768) / 1e6  # its keys and values read another width
    assert millions(*bert_of(model)) == pytest.approx(123.7 + cross_attention, abs=0.05)


@pytest.mark.parametrize(
    ("sizes", "published"),
    [(MINILM_L6, 22.7), (BERT_LARGE, 335.1)],  # all-MiniLM-L6 and bert-large-uncased with their poolers
)
def test_another_bert_has_its_published_size_and_the_cross_attention(sizes: dict[str, int], published: float) -> None:
    model, hidden = on_meta(**sizes), sizes["text_hidden"]
    cross_attention = millions(*[layer.cross_attention for layer in model.fusion_encoder.layers])
    pooler = (hidden + 1) * hidden / 1e6
    assert millions(model.text_encoder, model.fusion_encoder) - cross_attention + pooler == pytest.approx(published, abs=0.06)
    assert cross_attention == pytest.approx(sizes["fusion_layers"] * (2 * hidden * hidden + 2 * 768 * hidden) / 1e6, rel=0.01)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"image_size": 250}, "image_size 250 is not a multiple of patch_size 16"),
        ({"vision_width": 1024}, "vision_width 1024 cannot be split over 12 vision_heads"),
        ({"text_hidden": 380}, "text_hidden 380 cannot be split over 12 text_heads"),
    ],
)
def test_sizes_that_contradict_each_other_are_named(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig(**sizes)
