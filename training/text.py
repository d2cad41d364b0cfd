"""The text side: BERT cut in two, layers that see text alone and fusion layers that also look at the picture; all on flat tokens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from training.kernels.vocabulary import Decoder, Targets, vocabulary_cross_entropy
from training.model_config import ModelConfig
from training.packing import Grid

NORM_EPS = 1e-12


Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]  # (query, key, value, mask) as padded rows -> states of the queries


@dataclass(frozen=True)
class OwnText:
    """Self-attention: the tokens of `queries` look at those of `keys` in the same row, which `mask` allows."""

    queries: Grid
    keys: Grid
    mask: Bool[Tensor, "r 1 1 w"]

    @classmethod
    def of(cls, tokens: Grid, attention_mask: Int[Tensor, "r w"]) -> "OwnText":
        """All tokens look at their own text."""
        return cls(tokens, tokens, attention_mask.bool()[:, None, None, :])

    def __call__(self, attend: Attend, query: Float[Tensor, "q h"], key: Float[Tensor, "n h"], value: Float[Tensor, "n h"]) -> Float[Tensor, "q h"]:
        return self.queries.unpad(attend(self.queries.pad(query), self.keys.pad(key), self.keys.pad(value), self.mask))


@dataclass(frozen=True)
class Pictures:
    """Cross-attention: first the tokens of `own`, whose row r looks at picture r, then those of `drawn`, whose row r looks at picture `drawn_image[r]`.

    Tokens of `own` read keys and values where they were projected; only drawn pictures are copied.
    """

    own: Grid | None
    drawn: Grid | None = None
    drawn_image: Int[Tensor, " r"] | None = None

    def __call__(self, attend: Attend, query: Float[Tensor, "q h"], key: Float[Tensor, "b p h"], value: Float[Tensor, "b p h"]) -> Float[Tensor, "q h"]:
        parts = []
        num_own = len(self.own) if self.own is not None else 0
        if self.own is not None:
            parts.append(self.own.unpad(attend(self.own.pad(query[:num_own]), key, value, None)))
        if self.drawn is not None:
            assert self.drawn_image is not None
            keys, values = key.index_select(0, self.drawn_image), value.index_select(0, self.drawn_image)
            parts.append(self.drawn.unpad(attend(self.drawn.pad(query[num_own:]), keys, values, None)))
        return parts[0] if len(parts) == 1 else torch.cat(parts)


@dataclass(frozen=True)
class View:
    """What the tokens of one layer look at, and which of them it computes."""

    text: OwnText
    pictures: Pictures | None = None  # of a fusion layer
    computed: Int[Tensor, " q"] | None = None  # of the tokens that come in; None = all

    def of(self, hidden: Float[Tensor, "n h"]) -> Float[Tensor, "q h"]:
        """The computed ones."""
        return hidden if self.computed is None else hidden.index_select(0, self.computed)


class Embeddings(nn.Module):
    """Word + position + token type (always type 0, which is part of the function), normalised."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.word = nn.Embedding(config.vocab_size, config.text_hidden)
        self.position = nn.Embedding(config.max_positions, config.text_hidden)
        self.token_type = nn.Embedding(config.type_vocab_size, config.text_hidden)
        self.norm = nn.LayerNorm(config.text_hidden, eps=NORM_EPS)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, ids: Int[Tensor, " n"], positions: Int[Tensor, " n"]) -> Float[Tensor, "n h"]:
        embeds: Tensor = self.dropout(self.norm(self.word(ids) + self.token_type.weight[0] + self.position(positions)))
        return embeds


class Attention(nn.Module):
    """BERT's post-norm attention of flat tokens; keys and values come from a context of width `context_width`: the text itself or the picture."""

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

    def forward(self, hidden: Float[Tensor, "q h"], context: Float[Tensor, "*n d"], looks_at: OwnText | Pictures) -> Float[Tensor, "q h"]:
        """Keys and values are projected once per token of the context, however many rows look at it."""
        attended = looks_at(self._attend, self.query(hidden), self.key(context), self.value(context))
        normalised: Tensor = self.norm(hidden + self.dropout(self.output(attended)))
        return normalised

    def _attend(
        self, query: Float[Tensor, "r q h"], key: Float[Tensor, "r k h"], value: Float[Tensor, "r k h"], mask: Bool[Tensor, "r 1 1 k"] | None
    ) -> Float[Tensor, "r q h"]:
        """`mask` is True where a key may be looked at."""
        dropout = self.attention_dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(self._split(query), self._split(key), self._split(value), attn_mask=mask, dropout_p=dropout)
        return attended.transpose(1, 2).flatten(2)

    def _split(self, x: Float[Tensor, "r n h"]) -> Float[Tensor, "r heads n d"]:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)


class FeedForward(nn.Module):
    """BERT's post-norm feed-forward part with an exact (erf) GELU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.text_hidden, config.text_intermediate)
        self.down = nn.Linear(config.text_intermediate, config.text_hidden)
        self.norm = nn.LayerNorm(config.text_hidden, eps=NORM_EPS)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, hidden: Float[Tensor, "n h"]) -> Float[Tensor, "n h"]:
        normalised: Tensor = self.norm(hidden + self.dropout(self.down(F.gelu(self.up(hidden)))))
        return normalised


class TextLayer(nn.Module):
    """Self-attention, then feed-forward."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self_attention = Attention(config, context_width=config.text_hidden)
        self.ffn = FeedForward(config)

    def forward(self, hidden: Float[Tensor, "n h"], view: View) -> Float[Tensor, "q h"]:
        fed: Tensor = self.ffn(self.self_attention(view.of(hidden), hidden, view.text))
        return fed


class FusionLayer(nn.Module):
    """Self-attention, cross-attention to the picture's tokens, then feed-forward; the picture's tokens are not changed."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self_attention = Attention(config, context_width=config.text_hidden)
        self.cross_attention = Attention(config, context_width=config.vision_width)
        self.ffn = FeedForward(config)

    def forward(self, hidden: Float[Tensor, "n h"], image_embeds: Float[Tensor, "b p d"], view: View) -> Float[Tensor, "q h"]:
        seen = self.self_attention(view.of(hidden), hidden, view.text)
        fed: Tensor = self.ffn(self.cross_attention(seen, image_embeds, view.pictures))
        return fed


class TextEncoder(nn.Module):
    """Embeddings and the layers that see text alone."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(TextLayer(config) for _ in range(config.text_layers))

    def forward(self, ids: Int[Tensor, " n"], positions: Int[Tensor, " n"], view: View, last: View | None = None) -> Float[Tensor, "q h"]:
        """`last` is the view of the last layer, if another."""
        hidden: Tensor = self.embeddings(ids, positions)
        for layer in self.layers[:-1]:
            hidden = layer(hidden, view)
        computed: Tensor = self.layers[-1](hidden, last or view)
        return computed


class FusionEncoder(nn.Module):
    """The upper layers, which read the picture through cross-attention."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(FusionLayer(config) for _ in range(config.fusion_layers))

    def forward(self, hidden: Float[Tensor, "n h"], image_embeds: Float[Tensor, "b p d"], view: View, last: View | None = None) -> Float[Tensor, "q h"]:
        """`last` is the view of the last layer, if another."""
        for layer in self.layers[:-1]:
            hidden = layer(hidden, image_embeds, view)
        computed: Tensor = self.layers[-1](hidden, image_embeds, last or view)
        return computed


class VocabularyDecoder(nn.Linear):
    """From states to words. The loss is made in its forward pass, since ZeRO-3 has a module's weights at hand in the passes of that module alone."""

    def forward(self, hidden: Float[Tensor, "*rows h"], targets: Targets | None = None) -> Tensor:
        """Logits [*rows, V], or with targets the scalar loss."""
        if targets is None:
            return super().forward(hidden)
        return vocabulary_cross_entropy(self.of(hidden), *targets)

    def of(self, hidden: Float[Tensor, "s h"]) -> Decoder:
        """States and the layer, of which a kernel makes logits piece by piece."""
        return Decoder(hidden, self.weight, self.bias)


class MaskedLanguageHead(nn.Module):
    """Logits over the vocabulary; the decoder's weight is the word embedding table itself."""

    def __init__(self, config: ModelConfig, word_embedding: nn.Embedding) -> None:
        super().__init__()
        self.transform = nn.Linear(config.text_hidden, config.text_hidden)
        self.norm = nn.LayerNorm(config.text_hidden, eps=NORM_EPS)
        self.decoder = VocabularyDecoder(config.text_hidden, config.vocab_size)
        self.decoder.weight = word_embedding.weight

    def forward(self, hidden: Float[Tensor, "*rows h"]) -> Float[Tensor, "*rows v"]:
        logits: Tensor = self.decoder(self._transformed(hidden))
        return logits

    def decoder_of(self, hidden: Float[Tensor, "s h"]) -> Decoder:
        """All of `forward` but its last product, which makes the large matrix."""
        return self.decoder.of(self._transformed(hidden))

    def cross_entropy(self, hidden: Float[Tensor, "s h"], targets: Targets) -> Float[Tensor, ""]:
        """The loss of these states, without the large matrix as a whole."""
        loss: Tensor = self.decoder(self._transformed(hidden), targets)
        return loss

    def _transformed(self, hidden: Float[Tensor, "*rows h"]) -> Float[Tensor, "*rows h"]:
        states: Tensor = self.norm(F.gelu(self.transform(hidden)))
        return states


def initialise_as_bert(modules: Sequence[nn.Module], std: float) -> None:
    """Normal weights of the given standard deviation and zero biases, as BERT starts."""
    for root in modules:
        for module in root.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=std)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
