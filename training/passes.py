"""The text-side passes of a step over packed texts: one through the text layers, one through the fusion layers."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
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


class Candidates(NamedTuple):
    """The clean texts that may be drawn in place of a pair's own: those of the micro-batch, or of all ranks'."""

    states: Float[Tensor, "n h"]
    token_of_slot: Int[Tensor, "t l"]  # where their tokens stand in `states`
    mask: Int[Tensor, "t l"]


class FusionRows(NamedTuple):
    """For each pair of the micro-batch a text beside a picture: its own, or others drawn on the device; and the states wanted of them.

    Where both are drawn, there may be any number of rows, and none.
    """

    masked: bool = False  # the masked text instead of the clean one
    text: Int[Tensor, " r"] | None = None  # row, among the candidates, of the clean text that takes the place of the own
    image: Int[Tensor, " r"] | None = None  # row of the picture that takes the place of the own
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
    queries = stacked(_cls_grid(batch, len(batch)), *[tokens] * masked)
    return View(OwnText(queries, view.text.keys, view.text.mask), computed=torch.cat([tokens.first_tokens, masked_tokens]))


@dataclass(frozen=True)
class _Block:
    """One `FusionRows` laid out: its tokens, and those of them whose states are wanted."""

    rows: FusionRows
    batch: Batch
    texts: TextStates
    candidates: Candidates | None  # for drawn texts

    def __len__(self) -> int:
        return len(self.batch) if self.rows.text is None else len(self.rows.text)

    @cached_property
    def tokens(self) -> Grid:
        """Packed where the host knows the texts. Of drawn texts it cannot know the lengths without waiting for the device: they keep their padding."""
        if self.rows.text is None:
            return self.batch.packing.tokens
        assert self.candidates is not None
        return Grid.of_all((len(self), self.candidates.mask.shape[1]), self.batch.input_ids.device)

    @property
    def mask(self) -> Int[Tensor, "r l"]:
        if self.rows.text is None:
            return self.batch.attention_mask
        assert self.candidates is not None
        return self.candidates.mask.index_select(0, self.rows.text)

    @property
    def wanted(self) -> Grid:
        return self.batch.packing.predicted if self.rows.states == "predicted" else _cls_grid(self.batch, len(self))

    @property
    def wanted_tokens(self) -> Int[Tensor, " w"]:
        if self.rows.states == "cls":
            return self.tokens.first_tokens
        return self.tokens.token_of_slot.flatten().index_select(0, self.batch.packing.predicted_slots)

    @property
    def hidden(self) -> Float[Tensor, "n h"]:
        if self.rows.text is not None:
            assert self.candidates is not None
            return self.candidates.states.index_select(0, self.candidates.token_of_slot.index_select(0, self.rows.text).flatten())
        states = self.texts.masked if self.rows.masked else self.texts.clean
        assert states is not None
        return states

    def result(self, states: Float[Tensor, "w h"]) -> Float[Tensor, "rows h"]:
        return states if self.rows.states == "cls" else states.index_select(0, self.batch.packing.mlm_tokens)


def own_candidates(batch: Batch, texts: TextStates) -> Candidates:
    """The micro-batch's texts."""
    assert texts.clean is not None
    return Candidates(texts.clean, batch.packing.tokens.token_of_slot, batch.attention_mask)


def fuse(
    model: Albef,
    batch: Batch,
    texts: TextStates,
    image_embeds: Float[Tensor, "b p d"],
    wanted: Sequence[FusionRows],
    candidates: Candidates | None = None,
) -> list[Tensor]:
    """One pass of the fusion layers over all rows together; the last layer computes the wanted states alone. Answers in the order of `wanted`.

    `candidates` is what drawn texts are drawn from.
    """
    blocks = [_Block(rows, batch, texts, candidates) for rows in wanted]
    order = [number for number, block in enumerate(blocks) if len(block) > 0]  # kernels of attention refuse to have no rows
    order.sort(key=lambda number: wanted[number].image is not None)  # `Pictures` takes rows beside their own picture first
    laid_out = [blocks[number] for number in order]
    states = model.fusion_encoder(torch.cat([block.hidden for block in laid_out]), image_embeds, *_views(laid_out))
    parts = states.split([len(block.wanted) for block in laid_out])
    results = {number: block.result(part) for number, block, part in zip(order, laid_out, parts, strict=True)}
    return [results.get(number, states[:0]) for number in range(len(wanted))]


def _views(blocks: Sequence[_Block]) -> tuple[View, View]:
    """Of all fusion layers but the last, and of the last."""
    tokens, wanted = [block.tokens for block in blocks], [block.wanted for block in blocks]
    keys = stacked(*tokens)
    width = keys.token_of_slot.shape[1]
    text = OwnText.of(keys, torch.cat([_widened(block.mask, width) for block in blocks]))
    first_tokens = _running_sums([len(grid) for grid in tokens])
    computed = torch.cat([block.wanted_tokens + first for block, first in zip(blocks, first_tokens, strict=True)])
    last_text = OwnText(stacked(*wanted), keys, text.mask)
    return View(text, _pictures(blocks, tokens)), View(last_text, _pictures(blocks, wanted), computed)


def _widened(mask: Int[Tensor, "r l"], width: int) -> Int[Tensor, "r w"]:
    """Texts of other ranks may be padded to more than the own ones."""
    return mask if mask.shape[1] == width else F.pad(mask, (0, width - mask.shape[1]))


def _pictures(blocks: Sequence[_Block], grids: Sequence[Grid]) -> Pictures:
    own = [grid for block, grid in zip(blocks, grids, strict=True) if block.rows.image is None]
    drawn = [grid for block, grid in zip(blocks, grids, strict=True) if block.rows.image is not None]
    images = [block.rows.image for block in blocks if block.rows.image is not None]
    return Pictures(beside(*own) if own else None, stacked(*drawn) if drawn else None, torch.cat(images) if images else None)


def _running_sums(counts: Sequence[int]) -> list[int]:
    return [sum(counts[:number]) for number in range(len(counts))]


def _cls_grid(batch: Batch, num_texts: int) -> Grid:
    return Grid.of_all((num_texts, 1), batch.input_ids.device)
