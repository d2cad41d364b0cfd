"""The text side: BERT cut in two, layers that see text alone and fusion layers that also look at the picture."""

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from training.model_config import ModelConfig

NORM_EPS = 1e-12


class Embeddings(nn.Module):
    """Word + position + token type (always type 0, which is part of the function), normalised."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.word = nn.Embedding(config.vocab_size, config.text_hidden)
        self.position = nn.Embedding(config.max_positions, config.text_hidden)
        self.token_type = nn.Embedding(config.type_vocab_size, config.text_hidden)
        self.norm = nn.LayerNorm(config.text_hidden, eps=NORM_EPS)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, input_ids: Int[Tensor, "b l"]) -> Float[Tensor, "b l h"]:
        positions = self.position.weight[: input_ids.shape[1]]
        embeds: Tensor = self.dropout(self.norm(self.word(input_ids) + self.token_type.weight[0] + positions))
        return embeds


class Attention(nn.Module):
    """BERT's post-norm attention; keys and values come from a context of width `context_width`: the text itself or the picture."""

    def __init__(self, config: ModelConfig, context_width: int) -> None:
        super().__init__()
        self.heads = config.text_heads
        self.attention_dropout = config.attention_dropout
        self.query = nn.Linear(config.text_hidden, config.text_hidden)
        self.key = nn.Linear(context_width, config.text_hidden)
        self.value = nn.Linear(context_width, config.text_hidden)
        self.output = nn.Linear(config.text_hidden, config.text_hidden)
        self.norm = nn.LayerNorm(config.text_hidden, eps=NORM_EPS)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(
        self,
        hidden: Float[Tensor, "r l h"],
        context: Float[Tensor, "b n d"],
        mask: Bool[Tensor, "r 1 1 n"] | None = None,
        context_index: Int[Tensor, " r"] | None = None,
    ) -> Float[Tensor, "r l h"]:
        """Attend from `hidden` to `context`.

        `mask` is True where a context token may be looked at. With `context_index`, row i looks at context row
        `context_index[i]`: keys and values are then projected once per context row, however many rows share it.
        """
        query, key, value = self.query(hidden), self.key(context), self.value(context)
        if context_index is not None:
            key, value = key.index_select(0, context_index), value.index_select(0, context_index)
        dropout = self.attention_dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(self._split(query), self._split(key), self._split(value), attn_mask=mask, dropout_p=dropout)
        merged = attended.transpose(1, 2).flatten(2)
        normalised: Tensor = self.norm(hidden + self.dropout(self.output(merged)))
        return normalised

    def _split(self, x: Float[Tensor, "b n h"]) -> Float[Tensor, "b heads n d"]:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)


class FeedForward(nn.Module):
    """BERT's post-norm feed-forward part with an exact (erf) GELU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.text_hidden, config.text_intermediate)
        self.down = nn.Linear(config.text_intermediate, config.text_hidden)
        self.norm = nn.LayerNorm(config.text_hidden, eps=NORM_EPS)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, hidden: Float[Tensor, "b l h"]) -> Float[Tensor, "b l h"]:
        normalised: Tensor = self.norm(hidden + self.dropout(self.down(F.gelu(self.up(hidden)))))
        return normalised


class TextLayer(nn.Module):
    """Self-attention, then feed-forward."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self_attention = Attention(config, context_width=config.text_hidden)
        self.ffn = FeedForward(config)

    def forward(self, hidden: Float[Tensor, "b l h"], mask: Bool[Tensor, "b 1 1 l"]) -> Float[Tensor, "b l h"]:
        fed: Tensor = self.ffn(self.self_attention(hidden, hidden, mask))
        return fed


class FusionLayer(nn.Module):
    """Self-attention, cross-attention to the picture's tokens, then feed-forward; the picture's tokens are not changed."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self_attention = Attention(config, context_width=config.text_hidden)
        self.cross_attention = Attention(config, context_width=config.vision_width)
        self.ffn = FeedForward(config)

    def forward(
        self,
        hidden: Float[Tensor, "r l h"],
        mask: Bool[Tensor, "r 1 1 l"],
        image_embeds: Float[Tensor, "b n d"],
        image_index: Int[Tensor, " r"] | None,
    ) -> Float[Tensor, "r l h"]:
        hidden = self.self_attention(hidden, hidden, mask)
        fed: Tensor = self.ffn(self.cross_attention(hidden, image_embeds, context_index=image_index))
        return fed


class TextEncoder(nn.Module):
    """Embeddings and the layers that see text alone."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(TextLayer(config) for _ in range(config.text_layers))

    def forward(self, input_ids: Int[Tensor, "b l"], attention_mask: Int[Tensor, "b l"]) -> Float[Tensor, "b l h"]:
        hidden: Tensor = self.embeddings(input_ids)
        mask = attention_mask.bool()[:, None, None, :]
        for layer in self.layers:
            hidden = layer(hidden, mask)
        return hidden


class FusionEncoder(nn.Module):
    """The upper layers, which read the picture through cross-attention."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(FusionLayer(config) for _ in range(config.fusion_layers))

    def forward(
        self,
        text_embeds: Float[Tensor, "r l h"],
        attention_mask: Int[Tensor, "r l"],
        image_embeds: Float[Tensor, "b n d"],
        image_index: Int[Tensor, " r"] | None = None,
    ) -> Float[Tensor, "r l h"]:
        hidden = text_embeds
        mask = attention_mask.bool()[:, None, None, :]
        for layer in self.layers:
            hidden = layer(hidden, mask, image_embeds, image_index)
        return hidden


class MaskedLanguageHead(nn.Module):
    """Logits over the vocabulary; the decoder's weight is the word embedding table itself."""

    def __init__(self, config: ModelConfig, word_embedding: nn.Embedding) -> None:
        super().__init__()
        self.transform = nn.Linear(config.text_hidden, config.text_hidden)
        self.norm = nn.LayerNorm(config.text_hidden, eps=NORM_EPS)
        self.decoder = nn.Linear(config.text_hidden, config.vocab_size)
        self.decoder.weight = word_embedding.weight

    def forward(self, hidden: Float[Tensor, "*rows h"]) -> Float[Tensor, "*rows v"]:
        logits: Tensor = self.decoder(self.norm(F.gelu(self.transform(hidden))))
        return logits


def initialise_as_bert(modules: Sequence[nn.Module], std: float) -> None:
    """Normal weights of the given standard deviation and zero biases, as BERT starts."""
    for root in modules:
        for module in root.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=std)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
