"""The image encoder: a pre-norm vision transformer whose parameters are named as in DeiT and timm."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from training.model_config import ModelConfig

NORM_EPS = 1e-6


class PatchEmbedding(nn.Module):
    """Cut the picture into patches and project each to a token."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.vision_width, kernel_size=config.patch_size, stride=config.patch_size)

    def forward(self, images: Float[Tensor, "b 3 r r"]) -> Float[Tensor, "b p d"]:
        patches: Tensor = self.proj(images)
        return patches.flatten(2).transpose(1, 2)


class SelfAttention(nn.Module):
    """Multi-head self-attention with one fused projection in the order query, key, value."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        b, n, d = x.shape
        query, key, value = self.qkv(x).view(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value)
        projected: Tensor = self.proj(attended.transpose(1, 2).reshape(b, n, d))
        return projected


class Mlp(nn.Module):
    """Two linear layers with an exact (erf) GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        projected: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return projected


class Block(nn.Module):
    """One pre-norm transformer block."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.vision_width
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = SelfAttention(width, config.vision_heads)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width, int(width * config.vision_mlp_ratio))

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class VisionTransformer(nn.Module):
    """[CLS] + patches through all blocks; the final norm is applied to every token. Has no dropout."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.vision_width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.num_patches, config.vision_width))
        self.patch_embed = PatchEmbedding(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.vision_depth))
        self.norm = nn.LayerNorm(config.vision_width, eps=NORM_EPS)
        self._initialise(config.init_std)

    def forward(self, images: Float[Tensor, "b 3 r r"], kept: Int[Tensor, "b k"] | None = None) -> Float[Tensor, "b n d"]:
        """With `kept`, only those patches of each picture are looked at (patch dropout, Li et al. 2023, "FLIP"): n = 1 + k."""
        patches = self.patch_embed(images) + self.pos_embed[:, 1:]
        if kept is not None:
            patches = patches.gather(1, kept[:, :, None].expand(-1, -1, patches.shape[2]))
        cls_token = (self.cls_token + self.pos_embed[:, :1]).expand(len(patches), -1, -1)
        x = torch.cat([cls_token, patches], dim=1)
        for block in self.blocks:
            x = block(x)
        embeds: Tensor = self.norm(x)
        return embeds

    def _initialise(self, std: float) -> None:
        """As DeiT: truncated normal for tokens and linear weights, zero biases, the convolution left at torch's default."""
        nn.init.trunc_normal_(self.cls_token, std=std)
        nn.init.trunc_normal_(self.pos_embed, std=std)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=std)
                nn.init.zeros_(module.bias)


def resized_positions(pos_embed: Float[Tensor, "1 n d"], num_patches: int) -> Float[Tensor, "1 m d"]:
    """Position embeddings for another square grid: the [CLS] row is kept, the grid is resized bicubically."""
    cls_row, grid_rows = pos_embed[:, :1], pos_embed[:, 1:]
    old, new = int(grid_rows.shape[1] ** 0.5), int(num_patches**0.5)
    if old == new:
        return pos_embed
    grid = grid_rows.reshape(1, old, old, -1).permute(0, 3, 1, 2).float()
    resized = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat([cls_row, resized.permute(0, 2, 3, 1).flatten(1, 2).to(pos_embed.dtype)], dim=1)
