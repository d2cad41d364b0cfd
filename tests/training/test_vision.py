"""The image encoder with some patches left out."""

import pytest
import torch

from training.config import TrainingConfig
from training.model_config import ModelConfig
from training.vision import VisionTransformer

SMALL = ModelConfig(image_size=32, patch_size=8, vision_width=32, vision_depth=2, vision_heads=2, init_std=0.2)


def encoder() -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(SMALL)


def plain(vit: VisionTransformer, image: torch.Tensor, kept: list[int]) -> torch.Tensor:
    """One picture, token by token: each kept patch is projected by itself and takes the position embedding of its own place."""
    weight, bias = vit.patch_embed.proj.weight.flatten(1), vit.patch_embed.proj.bias
    tokens = [vit.cls_token[0, 0] + vit.pos_embed[0, 0]]
    for patch in kept:
        row, column = divmod(patch, 4)
        pixels = image[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
        tokens.append(weight @ pixels.flatten() + bias + vit.pos_embed[0, 1 + patch])
    x = torch.stack(tokens)[None]
    for block in vit.blocks:
        x = block(x)
    return vit.norm(x)[0]


def test_a_picture_of_which_patches_are_kept_is_encoded_as_if_it_had_no_others() -> None:
    vit, images, kept = encoder(), torch.randn(2, 3, 32, 32), torch.tensor([[0, 3, 7, 15], [1, 2, 8, 9]])
    embeds = vit(images, kept)
    assert embeds.shape == (2, 5, 32)
    for row in range(2):
        torch.testing.assert_close(embeds[row], plain(vit, images[row], kept[row].tolist()), atol=1e-5, rtol=1e-5)


def test_what_was_left_out_has_no_influence() -> None:
    vit, images, kept = encoder(), torch.randn(1, 3, 32, 32), torch.tensor([[0, 1]])
    other = images.clone()
    other[:, :, 8:] = 0.0
    assert torch.equal(vit(images, kept), vit(other, kept))
    assert not torch.equal(vit(images), vit(other))


def test_keeping_all_patches_changes_nothing() -> None:
    vit, images = encoder(), torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(vit(images, torch.arange(16).expand(2, -1)), vit(images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("share", "kept"), [(0.0, 256), (0.5, 128), (0.75, 64), (0.999, 1)])
def test_the_number_of_kept_patches_is_the_same_for_every_picture(share: float, kept: int) -> None:
    assert TrainingConfig(dataset="x", patch_dropout=share).num_kept_patches == kept
