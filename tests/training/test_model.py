"""Sizes and pieces of the model against plain versions and the published counts."""

import pytest
import torch
import torch.nn.functional as F

from training.model import Albef
from training.model_config import ModelConfig
from training.optim import parameter_groups
from training.packing import Grid
from training.text import Attention, OwnText
from training.vision import resized_positions

SMALL = ModelConfig(
    image_size=32, vision_width=32, vision_depth=1, vision_heads=2, text_hidden=24, text_heads=2, text_layers=1, fusion_layers=2, text_intermediate=48,
    vocab_size=60, max_positions=16, embed_dim=8, init_std=0.2,
)  # fmt: skip


def count(*modules: torch.nn.Module) -> float:
    """Millions of distinct parameters."""
    return sum({id(parameter): parameter.numel() for module in modules for parameter in module.parameters()}.values()) / 1e6


def test_the_default_model_has_the_papers_size() -> None:
    with torch.device("meta"):
        model = Albef(ModelConfig())
    assert count(model.image_encoder) == pytest.approx(85.8, abs=0.1)
    assert count(model.text_encoder, model.fusion_encoder, model.mlm_head) == pytest.approx(123.7, abs=0.1)
    assert count(model) == pytest.approx(209.9, abs=0.05)


def test_the_mlm_decoder_is_the_word_embedding_table() -> None:
    model = Albef(SMALL)
    assert model.mlm_head.decoder.weight is model.text_encoder.embeddings.word.weight


def test_attention_equals_the_plain_formula() -> None:
    torch.manual_seed(0)
    attention = Attention(SMALL, context_width=24).eval()
    hidden, mask = torch.randn(3, 5, 24), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]])
    heads = []
    for head in (slice(0, 12), slice(12, 24)):
        query, key, value = (projection(hidden)[..., head] for projection in (attention.query, attention.key, attention.value))
        scores = query @ key.transpose(1, 2) / 12**0.5 - 10_000 * (1 - mask[:, None, :])
        heads.append(scores.softmax(dim=2) @ value)
    plain = F.layer_norm(hidden + attention.output(torch.cat(heads, dim=2)), (24,), attention.norm.weight, attention.norm.bias, eps=1e-12)
    tokens = Grid.of_all((3, 5), hidden.device)
    flat = hidden.flatten(0, 1)
    torch.testing.assert_close(tokens.pad(attention(flat, flat, OwnText.of(tokens, mask))), plain, atol=1e-5, rtol=1e-5)


def test_rows_that_share_a_picture_get_what_a_copy_of_it_would_give() -> None:
    torch.manual_seed(0)
    model = Albef(SMALL).eval()
    images, texts, index = torch.randn(3, 5, 32), torch.randn(6, 4, 24), torch.tensor([0, 1, 2, 2, 0, 1])
    mask = torch.ones(6, 4, dtype=torch.long)
    torch.testing.assert_close(model.fuse(texts, mask, images, index), model.fuse(texts, mask, images[index]))


def test_features_are_unit_vectors_of_the_chosen_pool() -> None:
    torch.manual_seed(0)
    model, embeds = Albef(SMALL), torch.randn(2, 5, 32)
    torch.testing.assert_close(model.image_feat(embeds), F.normalize(model.image_projection(embeds[:, 0]), dim=1))
    mean = Albef(SMALL.model_copy(update={"image_pool": "mean"}))
    torch.testing.assert_close(mean.image_feat(embeds), F.normalize(mean.image_projection(embeds[:, 1:].mean(1)), dim=1))
    torch.testing.assert_close(model.image_feat(embeds).norm(dim=1), torch.ones(2))


def test_dropout_acts_in_training_and_not_in_evaluation() -> None:
    torch.manual_seed(0)
    model = Albef(SMALL)
    ids, mask = torch.randint(0, 60, (2, 6)), torch.ones(2, 6, dtype=torch.long)
    assert not torch.equal(model.encode_text(ids, mask), model.encode_text(ids, mask))
    model.eval()
    assert torch.equal(model.encode_text(ids, mask), model.encode_text(ids, mask))


def test_resized_positions_keep_the_first_row_and_an_equal_grid() -> None:
    positions = torch.randn(1, 1 + 16, 8)
    assert torch.equal(resized_positions(positions, 16), positions)
    larger = resized_positions(positions, 36)
    assert larger.shape == (1, 37, 8)
    assert torch.equal(larger[:, 0], positions[:, 0])
    flat = resized_positions(torch.ones(1, 17, 8), 36)
    torch.testing.assert_close(flat, torch.ones(1, 37, 8))


def test_the_temperature_is_decayed_and_norms_and_biases_are_not() -> None:
    model = Albef(SMALL)
    decayed, plain = parameter_groups(model, 0.02)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed_names, plain_names = ({names[id(parameter)] for parameter in group["params"]} for group in (decayed, plain))
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.02, 0.0)
    assert {"temperature", "image_encoder.pos_embed", "image_encoder.cls_token", "text_encoder.embeddings.word.weight"} <= decayed_names
    assert all(name.endswith(".bias") or "norm" in name for name in plain_names)
    assert len(decayed_names) + len(plain_names) == len(names)
