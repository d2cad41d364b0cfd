"""ALBEF: an image encoder and a text encoder, aligned by a contrastive projection, and fusion layers above them."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from training.model_config import ModelConfig
from training.packing import Grid
from training.text import FusionEncoder, MaskedLanguageHead, OwnText, Pictures, TextEncoder, View, initialise_as_bert
from training.vision import VisionTransformer


class Albef(nn.Module):
    """The student, and in a second instance the teacher. Source: Li et al., "Align before Fuse", NeurIPS 2021."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.image_encoder = VisionTransformer(config)
        self.text_encoder = TextEncoder(config)
        self.fusion_encoder = FusionEncoder(config)
        self.image_projection = nn.Linear(config.vision_width, config.embed_dim)
        self.text_projection = nn.Linear(config.text_hidden, config.embed_dim)
        self.itm_head = nn.Linear(config.text_hidden, 2)  # class 1 = the caption belongs to the picture
        self.mlm_head = MaskedLanguageHead(config, self.text_encoder.embeddings.word)
        self.temperature = nn.Parameter(torch.full((1,), config.temperature))  # shape (1,): DeepSpeed 0.19.8 cannot broadcast 0-d parameters
        initialise_as_bert([self.text_encoder, self.fusion_encoder, self.mlm_head], config.init_std)

    def encode_image(self, images: Float[Tensor, "b 3 r r"], kept: Int[Tensor, "b k"] | None = None) -> Float[Tensor, "b n d"]:
        """`image_embeds`: the states of [CLS] and all patches, or of the `kept` ones; pictures are normalised with CLIP's mean and std."""
        embeds: Tensor = self.image_encoder(images, kept)
        return embeds

    def encode_text(self, input_ids: Int[Tensor, "b l"], attention_mask: Int[Tensor, "b l"]) -> Float[Tensor, "b l h"]:
        """`text_embeds`: the states of all tokens before fusion; `attention_mask` is 1 on tokens and 0 on padding."""
        tokens = Grid.of_all(input_ids.shape, input_ids.device)
        positions = tokens.slot_of_token % input_ids.shape[1]
        return tokens.pad(self.text_encoder(input_ids.flatten(), positions, View(OwnText.of(tokens, attention_mask))))

    def image_feat(self, image_embeds: Float[Tensor, "b n d"]) -> Float[Tensor, "b e"]:
        """Unit vectors that ITC compares with `text_feat`."""
        pooled = image_embeds[:, 0] if self.config.image_pool == "cls" else image_embeds[:, 1:].mean(dim=1)
        return F.normalize(self.image_projection(pooled), dim=-1)

    def text_feat(self, text_embeds: Float[Tensor, "b l h"]) -> Float[Tensor, "b e"]:
        """Unit vectors that ITC compares with `image_feat`."""
        return F.normalize(self.text_projection(text_embeds[:, 0]), dim=-1)

    def fuse(
        self,
        text_embeds: Float[Tensor, "r l h"],
        attention_mask: Int[Tensor, "r l"],
        image_embeds: Float[Tensor, "b n d"],
        image_index: Int[Tensor, " r"] | None = None,
    ) -> Float[Tensor, "r l h"]:
        """Text states that have seen the picture; with `image_index`, text row i looks at picture `image_index[i]`."""
        tokens = Grid.of_all(attention_mask.shape, attention_mask.device)
        pictures = Pictures(own=tokens) if image_index is None else Pictures(own=None, drawn=tokens, drawn_image=image_index)
        return tokens.pad(self.fusion_encoder(tokens.unpad(text_embeds), image_embeds, View(OwnText.of(tokens, attention_mask), pictures)))
