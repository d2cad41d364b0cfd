"""Packing and its grids against plain padding."""

import pytest
import torch

from training.packing import Grid, beside, pack, pack_texts, stacked

KEPT = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 0], [1, 1, 1, 0]]).bool()


def tokens_of(grid: Grid) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(len(grid), 5, dtype=torch.float64, requires_grad=True)


def test_padding_puts_tokens_in_their_slots_and_back() -> None:
    grid = pack(KEPT)
    tokens = tokens_of(grid)
    padded = grid.pad(tokens)
    assert torch.equal(padded[KEPT], tokens)
    assert torch.equal(padded[1, 1:], tokens[3].expand(3, 5))  # slots without a token repeat the row's first
    assert torch.equal(grid.unpad(padded), tokens)


def test_gradients_of_moving_tokens_are_those_of_plain_indexing() -> None:
    grid = pack(KEPT)
    weight = torch.randn(3, 4, 5, dtype=torch.float64)

    def moved(tokens: torch.Tensor) -> torch.Tensor:
        return grid.unpad(grid.pad(tokens) * weight)

    assert torch.autograd.gradcheck(moved, tokens_of(grid))


def test_only_slots_with_tokens_get_a_gradient() -> None:
    grid, slots = pack(KEPT), torch.randn(3, 4, 5, requires_grad=True)
    (gradient,) = torch.autograd.grad(grid.unpad(slots).sum(), slots)
    assert torch.equal(gradient[KEPT], torch.ones(7, 5))
    assert not gradient[~KEPT].any()


def test_grids_under_and_beside_each_other_hold_the_same_tokens() -> None:
    first, second = pack(KEPT), pack(torch.tensor([[1, 0], [1, 1], [1, 0]]).bool())
    a, b = tokens_of(first), tokens_of(second) + 10
    under, next_to = stacked(first, second), beside(first, second)
    together = torch.cat([a, b])
    rows = under.pad(together)
    assert torch.equal(rows[:3][KEPT], a)
    assert torch.equal(rows[3:, :2], second.pad(b))
    columns = next_to.pad(together)
    assert torch.equal(columns[:, :4], first.pad(a))
    assert torch.equal(columns[:, 4:], second.pad(b))
    for grid in (under, next_to):
        assert torch.equal(grid.unpad(grid.pad(together)), together)


def test_a_grid_of_all_slots_moves_nothing() -> None:
    grid = Grid.of_all((3, 4), torch.device("cpu"))
    tokens = tokens_of(grid)
    assert grid.pad(tokens).data_ptr() == tokens.data_ptr()
    assert torch.equal(grid.pad(tokens), tokens.view(3, 4, 5))
    assert stacked(grid, grid).full
    assert not beside(grid, grid).full  # its tokens come grid by grid, its slots row by row


def test_texts_lose_their_padding_but_for_what_rounds_up() -> None:
    lengths = torch.tensor([30, 1, 7, 12, 3, 25, 9, 2])
    mask = (torch.arange(30) < lengths[:, None]).long()
    packing = pack_texts(mask, torch.full_like(mask, -100))
    real = set(mask.flatten().nonzero().squeeze(1).tolist())
    assert real <= set(packing.tokens.slot_of_token.tolist())
    assert len(packing.tokens) == 96  # 89 rounded up to a multiple of 240 / 32


def test_selected_positions_are_found_in_order_and_cls_stands_in_where_there_are_none() -> None:
    mask = torch.ones(3, 6, dtype=torch.long)
    labels = torch.full_like(mask, -100)
    labels[0, [2, 4]] = 7
    labels[2, 5] = 8
    packing = pack_texts(mask, labels)
    assert packing.predicted_slots.tolist() == [2, 4, 6, 17]
    assert packing.predicted_slots[packing.mlm_tokens].tolist() == [2, 4, 17]
    assert packing.predicted.token_of_slot.tolist() == [[0, 1], [2, 2], [3, 3]]


def test_a_row_without_its_first_slot_cannot_be_packed() -> None:
    with pytest.raises(AssertionError, match="first slot"):
        pack(torch.tensor([[0, 1]]).bool())
