"""ZeRO's flat groups: a parameter is found in the slice of whichever ranks hold it."""

import pytest
import torch

from training.flat_groups import FlatGroup, Placement


@pytest.mark.parametrize("offset", [0, 3, 4, 7])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_a_clamped_parameter_is_clamped_where_it_computes_and_in_the_master_of_its_rank_and_nothing_else_is(offset: int, world_size: int) -> None:
    places = (Placement("weight", 0, torch.Size([offset])), Placement("temperature", offset, torch.Size([1])))
    slices = []
    for rank in range(world_size):
        group = FlatGroup(torch.full((8 // world_size,), 9.0), torch.full((8,), 9.0), places, rank, world_size)
        group.clamp_("temperature", 0.001, 0.5)
        expected = torch.full((8,), 9.0)
        expected[offset] = 0.5
        assert torch.equal(group.compute, expected)
        slices.append(group.master)
    assert torch.equal(torch.cat(slices), expected)


def test_a_parameter_that_spans_two_ranks_is_clamped_in_both() -> None:
    places = (Placement("wide", 3, torch.Size([2])),)
    masters = []
    for rank in range(2):
        group = FlatGroup(torch.full((4,), -9.0), torch.full((8,), -9.0), places, rank, 2)
        group.clamp_("wide", 0.0, 1.0)
        masters.append(group.master)
    assert torch.cat(masters).tolist() == [-9, -9, -9, 0, 0, -9, -9, -9]
