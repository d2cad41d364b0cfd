"""ZeRO's flat parameter groups, seen as named tensors.

DeepSpeed (0.19) lays the parameters of an optimizer group one after another into a flat tensor, pads it to a multiple of the ranks
and gives each rank one slice of the fp32 master weights and of the AdamW moments. Teacher and checkpoint work on these slices; this is
the only module that knows where DeepSpeed keeps them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Placement:
    """Where one parameter lies inside its flat group."""

    name: str
    offset: int
    shape: torch.Size


@dataclass(frozen=True)
class FlatGroup:
    """One optimizer group under ZeRO-1 or 2.

    Attributes:
        master: fp32 weights of this rank, [padded size / world_size].
        compute: the weights the forward pass uses, all of them, [padded size].
        placements: the parameters in their order inside the group.
    """

    master: Tensor
    compute: Tensor
    placements: tuple[Placement, ...]
    rank: int
    world_size: int

    def own(self, flat: Tensor) -> Tensor:
        """This rank's slice of a flat tensor, as a view."""
        return flat.narrow(0, self.rank * self.master.numel(), self.master.numel())

    def gather(self, shard: Tensor) -> Tensor:
        """All ranks' slices put together, [padded size]."""
        if self.world_size == 1:
            return shard
        flat = shard.new_empty(self.compute.numel())
        dist.all_gather_into_tensor(flat, shard.contiguous())
        return flat

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        """Views of a flat tensor under the parameters' names and shapes."""
        return {place.name: flat.narrow(0, place.offset, place.shape.numel()).view(place.shape) for place in self.placements}

    @torch.no_grad()
    def clamp_(self, name: str, low: float, high: float) -> None:
        """Keep a parameter within bounds, in the weights that compute and in the fp32 master of the rank that holds it; other parameters are left alone."""
        first = self.rank * self.master.numel()
        for place in self.placements:
            if place.name != name:
                continue
            start, end = place.offset, place.offset + place.shape.numel()
            self.compute[start:end].clamp_(low, high)
            self.master[max(start - first, 0) : max(end - first, 0)].clamp_(low, high)

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The flat tensor [padded size], fp32, that holds `tensors`; padding is zero."""
        flat = torch.zeros(self.compute.numel(), dtype=torch.float32, device=self.compute.device)
        for name, view in self.named(flat).items():
            view.copy_(tensors[name])
        return flat


def flat_groups(zero_optimizer: Any, model: nn.Module) -> list[FlatGroup]:
    """The groups of a DeepSpeed stage 1 or 2 optimizer, with parameters named as in `model`."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rank, world_size = dist.get_rank(), dist.get_world_size()
    groups = []
    for index, parameters in enumerate(zero_optimizer.round_robin_bit16_groups):
        offsets = zero_optimizer.round_robin_bit16_offsets[index]
        placements = tuple(Placement(names[id(parameter)], offset, parameter.shape) for parameter, offset in zip(parameters, offsets, strict=True))
        master, compute = zero_optimizer.single_partition_of_fp32_groups[index], zero_optimizer.bit16_groups_flat[index]
        assert master.numel() * world_size == compute.numel(), "ZeRO's partition is not an even split"
        groups.append(FlatGroup(master, compute, placements, rank, world_size))
    return groups


def adam_state(zero_optimizer: Any, group: FlatGroup) -> dict[str, Any]:
    """AdamW's state of a group on this rank, filled with zeros before the first step."""
    state: dict[str, Any] = zero_optimizer.optimizer.state[group.master]
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32)
        for moment in MOMENTS:
            state[moment] = torch.zeros_like(group.master)
    return state
