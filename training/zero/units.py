"""A model without gradients whose weights lie in slices over ranks: a block's are gathered for its forward pass and given back after it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from training.model import Albef
from training.zero.layout import Flat


class GatheredUnits:
    """Every block of the encoders is a unit. All else (embeddings, heads, last norm) is the root, whole between `gather_root` and `release_root`.

    Slices are [slice_size] fp32, of one parameter each (ZeRO-3's layout). A unit travels in one all-gather, in the compute type.
    """

    def __init__(self, model: Albef, flats: Sequence[Flat], slices: Sequence[Tensor], compute_type: torch.dtype) -> None:
        of_name = {place.name: (flat, values) for flat, values in zip(flats, slices, strict=True) for place in flat.placements}
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        blocks: list[nn.Module] = [*model.image_encoder.blocks, *model.text_encoder.layers, *model.fusion_encoder.layers]
        in_blocks = {id(parameter) for block in blocks for parameter in block.parameters()}

        def unit(parameters: Sequence[nn.Parameter]) -> _Unit:
            return _Unit([(parameter, *of_name[names[id(parameter)]]) for parameter in parameters], compute_type)

        self._root = unit([parameter for parameter in model.parameters() if id(parameter) not in in_blocks])
        self._of_blocks = [unit(list(block.parameters())) for block in blocks]
        for one in (self._root, *self._of_blocks):
            one.release()
        for block, of_block in zip(blocks, self._of_blocks, strict=True):
            block.register_forward_pre_hook(_before(of_block))
            block.register_forward_hook(_after(of_block))

    @contextmanager
    def all_gathered(self) -> Iterator[None]:
        """The whole model at once, for who wants to look at it; every rank must call."""
        for one in (self._root, *self._of_blocks):
            one.gather()
        yield
        for one in (self._root, *self._of_blocks):
            one.release()

    def gather_root(self) -> None:
        """Before anything of the model is used; every rank must call."""
        self._root.gather()

    def release_root(self) -> None:
        self._root.release()


class _Unit:
    """Parameters that are gathered together."""

    def __init__(self, parameters: Sequence[tuple[nn.Parameter, Flat, Tensor]], compute_type: torch.dtype) -> None:
        self._parameters = parameters
        self._compute_type = compute_type

    def gather(self) -> None:
        own = torch.cat([values.to(self._compute_type) for _, _, values in self._parameters])
        world_size = self._parameters[0][1].world_size
        gathered = own.new_empty(world_size * len(own))
        dist.all_gather_into_tensor(gathered, own)
        parts = torch.split(gathered.view(world_size, -1), [flat.slice_size for _, flat, _ in self._parameters], dim=1)
        for (parameter, flat, _), part in zip(self._parameters, parts, strict=True):
            (whole,) = flat.named(part.reshape(-1)).values()
            parameter.data = whole

    def release(self) -> None:
        for parameter, _, values in self._parameters:
            parameter.data = values.new_empty(0, dtype=self._compute_type)


def _before(unit: _Unit) -> Any:
    def gather(_module: nn.Module, _arguments: Any) -> None:
        unit.gather()

    return gather


def _after(unit: _Unit) -> Any:
    def release(_module: nn.Module, _arguments: Any, _result: Any) -> None:
        unit.release()

    return release
