"""Ragged texts as one flat run of tokens without their padding, and the padded grids that attention alone still needs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from training.masking import IGNORED

# A padded batch of one shape packs to at most so many numbers of tokens: memory and compiled shapes repeat. The padding kept for it is less than 1/32 of the
# grid's slots, and so a larger share of the tokens where much is padding: 6 % where half is.
FILLINGS = 32


@dataclass(frozen=True)
class Grid:
    """Where n flat tokens stand in R rows of W slots, kept in both directions: neither needs a search on the device.

    A slot without a token repeats the first token of its row: finite, hidden from the others by the mask, never read back.
    """

    token_of_slot: Int[Tensor, "r w"]
    slot_of_token: Int[Tensor, " n"]  # in the flattened [R * W]
    full: bool = False  # every slot has its token, in order: nothing needs to be moved

    @classmethod
    def of_all(cls, shape: Sequence[int], device: torch.device) -> "Grid":
        """Every slot of [R, W] is a token of its own."""
        rows, width = shape
        slots = torch.arange(rows * width, device=device)
        return cls(slots.view(rows, width), slots, full=True)

    def __len__(self) -> int:
        return len(self.slot_of_token)

    @property
    def first_tokens(self) -> Int[Tensor, " r"]:
        """Each row's [CLS]."""
        return self.token_of_slot[:, 0]

    def pad(self, tokens: Float[Tensor, "n h"]) -> Float[Tensor, "r w h"]:
        if self.full:
            return tokens.view(*self.token_of_slot.shape, -1)
        padded: Tensor = _Pad.apply(tokens, self.token_of_slot, self.slot_of_token)
        return padded

    def unpad(self, slots: Float[Tensor, "r w h"]) -> Float[Tensor, "n h"]:
        if self.full:
            return slots.flatten(0, 1)
        tokens: Tensor = _Unpad.apply(slots, self.slot_of_token)
        return tokens

    def each(self, act: Callable[[Tensor], Tensor]) -> "Grid":
        """The same grid of other tensors, for example moved ones."""
        return Grid(act(self.token_of_slot), act(self.slot_of_token), self.full)


class _Pad(torch.autograd.Function):
    """Autograd's own backward would add up all slots, on a GPU with atomics that meet at the repeated tokens; only the tokens' own slots carry gradient."""

    @staticmethod
    def forward(ctx: Any, tokens: Float[Tensor, "n h"], token_of_slot: Int[Tensor, "r w"], slot_of_token: Int[Tensor, " n"]) -> Float[Tensor, "r w h"]:
        ctx.save_for_backward(slot_of_token)
        return tokens.index_select(0, token_of_slot.flatten()).view(*token_of_slot.shape, -1)

    @staticmethod
    def backward(ctx: Any, gradient: Float[Tensor, "r w h"]) -> tuple[Float[Tensor, "n h"], None, None]:
        (slot_of_token,) = ctx.saved_tensors
        return gradient.flatten(0, 1).index_select(0, slot_of_token), None, None


class _Unpad(torch.autograd.Function):
    """The slots without a token get a zero gradient, which is what lets `_Pad` leave them out."""

    @staticmethod
    def forward(ctx: Any, slots: Float[Tensor, "r w h"], slot_of_token: Int[Tensor, " n"]) -> Float[Tensor, "n h"]:
        ctx.save_for_backward(slot_of_token)
        ctx.shape = slots.shape
        return slots.flatten(0, 1).index_select(0, slot_of_token)

    @staticmethod
    def backward(ctx: Any, gradient: Float[Tensor, "n h"]) -> tuple[Float[Tensor, "r w h"], None]:
        (slot_of_token,) = ctx.saved_tensors
        slots = gradient.new_zeros(ctx.shape)
        slots.view(-1, ctx.shape[-1]).index_copy_(0, slot_of_token, gradient)
        return slots, None


def pack(kept: Bool[Tensor, "r w"]) -> Grid:
    """The slots that are tokens, row by row; the first slot of every row must be one. Runs on the host."""
    assert bool(kept[:, 0].all()), "a row without its first slot has nothing to repeat"
    token_of_slot = (kept.flatten().cumsum(0) - 1).view(kept.shape)
    return Grid(torch.where(kept, token_of_slot, token_of_slot[:, :1]), kept.flatten().nonzero().squeeze(1), full=bool(kept.all()))


def stacked(*grids: Grid) -> Grid:
    """Rows under rows, as wide as the widest; tokens behind tokens."""
    width = max(grid.token_of_slot.shape[1] for grid in grids)
    rows, slots, first_token, first_row = [], [], 0, 0
    for grid in grids:
        own_rows, own_width = grid.token_of_slot.shape
        filler = grid.first_tokens[:, None].expand(-1, width - own_width)
        rows.append(torch.cat([grid.token_of_slot, filler], dim=1) + first_token)
        slots.append(_rewidened(grid, width) + first_row * width)
        first_token, first_row = first_token + len(grid), first_row + own_rows
    return Grid(torch.cat(rows), torch.cat(slots), full=all(grid.full and grid.token_of_slot.shape[1] == width for grid in grids))


def beside(*grids: Grid) -> Grid:
    """Each row continued by the same row of the next grid; tokens behind tokens."""
    width = sum(grid.token_of_slot.shape[1] for grid in grids)
    columns, slots, first_token, first_column = [], [], 0, 0
    for grid in grids:
        columns.append(grid.token_of_slot + first_token)
        slots.append(_rewidened(grid, width) + first_column)
        first_token, first_column = first_token + len(grid), first_column + grid.token_of_slot.shape[1]
    return Grid(torch.cat(columns, dim=1), torch.cat(slots), full=len(grids) == 1 and grids[0].full)


def _rewidened(grid: Grid, width: int) -> Int[Tensor, " n"]:
    """The tokens' slots where rows are `width` wide."""
    own_width = grid.token_of_slot.shape[1]
    return grid.slot_of_token // own_width * width + grid.slot_of_token % own_width


@dataclass(frozen=True)
class TextPacking:
    """What the host knows of a micro-batch's texts and the device needs: every number of tokens is a size here, never a value to be read back."""

    tokens: Grid  # a text pass: [B, L], padding left out but for what rounds the number of tokens up
    predicted: Grid  # [B, K]: the positions whose states MLM needs, K the most of a text; [CLS] stands in where a text has none
    predicted_slots: Int[Tensor, " p"]  # of these in the flattened [B * L]
    mlm_tokens: Int[Tensor, " s"]  # those of the p tokens that MLM really predicts

    def each(self, act: Callable[[Tensor], Tensor]) -> "TextPacking":
        """The same packing of other tensors, for example moved ones."""
        return TextPacking(self.tokens.each(act), self.predicted.each(act), act(self.predicted_slots), act(self.mlm_tokens))


def pack_texts(attention_mask: Int[Tensor, "b l"], mlm_labels: Int[Tensor, "b l"]) -> TextPacking:
    """Runs on the host, where counting costs no device sync."""
    selected = mlm_labels != IGNORED
    wanted = selected.clone()
    wanted[:, 0] |= ~selected.any(dim=1)
    counts = wanted.sum(dim=1, keepdim=True)
    slots = wanted.flatten().nonzero().squeeze(1)
    return TextPacking(
        tokens=pack(_rounded_up(attention_mask.bool())),
        predicted=pack(torch.arange(int(counts.max())) < counts),
        predicted_slots=slots,
        mlm_tokens=selected.flatten()[slots].nonzero().squeeze(1),
    )


def _rounded_up(real: Bool[Tensor, "b l"]) -> Bool[Tensor, "b l"]:
    """Some padding kept, so that the number of tokens is a multiple of a 1/FILLINGS of the grid."""
    multiple = -(-real.numel() // FILLINGS)
    missing = min(-int(real.sum()) % multiple, int((~real).sum()))
    kept = real.flatten().clone()
    kept[(~kept).nonzero().squeeze(1)[:missing]] = True
    return kept.view(real.shape)
