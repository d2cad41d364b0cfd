"""The text-side passes of a step over packed texts: one through the text layers, one through the fusion layers."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from training.batch import Batch
from training.model import Albef
from training.packing import Grid, beside, stacked
from training.text import OwnText, Pictures, View


class TextStates(NamedTuple):
    """States of a micro-batch's texts before fusion; None where nobody reads them."""

    cls: Float[Tensor, "b h"] | None  # [CLS] of the clean texts
    clean: Float[Tensor, "n h"] | None  # their packed tokens
    masked: Float[Tensor, "n h"] | None


class FusionRows(NamedTuple):
    """For each pair of the micro-batch a text beside a picture: its own, or others drawn on the device; and the states wanted of them."""

    masked: bool = False  # the masked text instead of the clean one
    text: Int[Tensor, " b"] | None = None  # row of the clean text that takes the place of the own
    image: Int[Tensor, " b"] | None = None  # row of the picture that takes the place of the own
    states: Literal["cls", "predicted"] = "cls"  # of each row's [CLS], [B, H]; or of MLM's positions, [S, H] in the order of `Batch.mlm_positions`


def encode_texts(model: Albef, batch: Batch, *, clean: bool, masked: bool, clean_cls_only: bool = False) -> TextStates:
    """One pass over clean and masked texts. With `clean_cls_only` the last layer leaves the other clean tokens out, as nobody fuses them."""
    tokens, num_tokens = batch.packing.tokens, len(batch.packing.tokens)
    texts = [ids for ids, wanted in ((batch.input_ids, clean), (batch.masked_ids, masked)) if wanted]
    if not texts:
        return TextStates(None, None, None)
    grid = stacked(*[tokens] * len(texts))
    view = View(OwnText.of(grid, torch.cat([batch.attention_mask] * len(texts))))
    ids = torch.cat([ids.flatten().index_select(0, tokens.slot_of_token) for ids in texts])
    positions = (tokens.slot_of_token % batch.input_ids.shape[1]).repeat(len(texts))
    if clean and clean_cls_only:
        cls, others = model.text_encoder(ids, positions, view, _only_cls_of_clean(batch, view, masked)).tensor_split([len(batch)])
        return TextStates(cls, None, others if masked else None)
    states = model.text_encoder(ids, positions, view)
    if not clean:
        return TextStates(None, None, states)
    return TextStates(states.index_select(0, tokens.first_tokens), states[:num_tokens], states[num_tokens:] if masked else None)


def _only_cls_of_clean(batch: Batch, view: View, masked: bool) -> View:
    """Of all clean tokens [CLS], and all masked ones."""
    tokens, num_tokens = batch.packing.tokens, len(batch.packing.tokens)
    masked_tokens = torch.arange(num_tokens, num_tokens * (1 + masked), device=tokens.slot_of_token.device)
    queries = stacked(_cls_grid(batch), *[tokens] * masked)
    return View(OwnText(queries, view.text.keys, view.text.mask), computed=torch.cat([tokens.first_tokens, masked_tokens]))


@dataclass(frozen=True)
class _Block:
    """One `FusionRows` laid out: its tokens, and those of them whose states are wanted."""

    rows: FusionRows
    batch: Batch

    @cached_property
    def tokens(self) -> Grid:
        """Packed where the host knows the texts. Of drawn texts it cannot know the lengths without waiting for the device: they keep their padding."""
        if self.rows.text is None:
            return self.batch.packing.tokens
        return Grid.of_all(self.batch.input_ids.shape, self.batch.input_ids.device)

    @property
    def mask(self) -> Int[Tensor, "b l"]:
        return self.batch.attention_mask if self.rows.text is None else self.batch.attention_mask.index_select(0, self.rows.text)

    @property
    def wanted(self) -> Grid:
        return self.batch.packing.predicted if self.rows.states == "predicted" else _cls_grid(self.batch)

    @property
    def wanted_tokens(self) -> Int[Tensor, " w"]:
        if self.rows.states == "cls":
            return self.tokens.first_tokens
        return self.tokens.token_of_slot.flatten().index_select(0, self.batch.packing.predicted_slots)

    def hidden(self, texts: TextStates) -> Float[Tensor, "n h"]:
        states = texts.masked if self.rows.masked else texts.clean
        assert states is not None
        if self.rows.text is None:
            return states
        return states.index_select(0, self.batch.packing.tokens.token_of_slot.index_select(0, self.rows.text).flatten())

    def result(self, states: Float[Tensor, "w h"]) -> Float[Tensor, "rows h"]:
        return states if self.rows.states == "cls" else states.index_select(0, self.batch.packing.mlm_tokens)


def fuse(model: Albef, batch: Batch, texts: TextStates, image_embeds: Float[Tensor, "b p d"], wanted: Sequence[FusionRows]) -> list[Tensor]:
    """One pass of the fusion layers over all rows together; the last layer computes the wanted states alone. Answers in the order of `wanted`."""
    order = sorted(range(len(wanted)), key=lambda number: wanted[number].image is not None)  # `Pictures` takes rows beside their own picture first
    blocks = [_Block(wanted[number], batch) for number in order]
    states = model.fusion_encoder(torch.cat([block.hidden(texts) for block in blocks]), image_embeds, *_views(blocks))
    parts = states.split([len(block.wanted) for block in blocks])
    results = {number: block.result(part) for number, block, part in zip(order, blocks, parts, strict=True)}
    return [results[number] for number in range(len(wanted))]


def _views(blocks: Sequence[_Block]) -> tuple[View, View]:
    """Of all fusion layers but the last, and of the last."""
    tokens, wanted = [block.tokens for block in blocks], [block.wanted for block in blocks]
    keys = stacked(*tokens)
    text = OwnText.of(keys, torch.cat([block.mask for block in blocks]))
    first_tokens = _running_sums([len(grid) for grid in tokens])
    computed = torch.cat([block.wanted_tokens + first for block, first in zip(blocks, first_tokens, strict=True)])
    last_text = OwnText(stacked(*wanted), keys, text.mask)
    return View(text, _pictures(blocks, tokens)), View(last_text, _pictures(blocks, wanted), computed)


def _pictures(blocks: Sequence[_Block], grids: Sequence[Grid]) -> Pictures:
    own = [grid for block, grid in zip(blocks, grids, strict=True) if block.rows.image is None]
    drawn = [grid for block, grid in zip(blocks, grids, strict=True) if block.rows.image is not None]
    images = [block.rows.image for block in blocks if block.rows.image is not None]
    return Pictures(beside(*own) if own else None, stacked(*drawn) if drawn else None, torch.cat(images) if images else None)


def _running_sums(counts: Sequence[int]) -> list[int]:
    return [sum(counts[:number]) for number in range(len(counts))]


def _cls_grid(batch: Batch) -> Grid:
    return Grid.of_all((len(batch), 1), batch.input_ids.device)
