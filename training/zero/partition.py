"""What a rank has of the student in fp32 under each ZeRO stage: weights and AdamW's moments, as views under the parameters' names.

DeepSpeed 0.19 keeps them in four ways. Stage 0: parameters and AdamW as they are, on every rank. Stages 1 and 2: a flat tensor for each optimizer
group, of which a rank has one slice. Stage 3: a slice of every parameter, those of a group one after another.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from training.zero.engine import gather_small
from training.zero.layout import Flat, Placement, Span

MOMENTS = ("exp_avg", "exp_avg_sq")
TOWERS = {"image_encoder": "vision", "text_encoder": "text", "fusion_encoder": "fusion"}  # every other parameter belongs to the heads


@dataclass(frozen=True)
class Piece:
    """A span of a parameter's elements, each [length], fp32, on this rank."""

    span: Span
    master: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor


@dataclass(frozen=True)
class Partition:
    """The student's fp32 state on this rank.

    Attributes:
        flats: how parameters are cut; the same on every rank.
        own: what this rank saves and averages: the spans of its slices in order, no element on two ranks.
        held: all it has; more than `own` under stage 0 alone.
        steps: AdamW's counters, all alike.
    """

    rank: int
    flats: list[Flat]
    own: list[Piece]
    held: list[Piece]
    steps: list[Tensor]
    parameters: dict[str, nn.Parameter]
    refresh: Callable[[], None]  # the compute weights, after masters were written; every rank must call
    gradients: Callable[[], list[Tensor]]  # of `own`, averaged over ranks; there between backward pass and step
    after_skipped_step: Callable[[], None] = lambda: None  # makes the compute weights ready again; every rank must call

    @torch.no_grad()
    def clamp_(self, name: str, low: float, high: float) -> None:
        """Keep a parameter within bounds, in the fp32 masters and in the weights that compute."""
        for piece in self.held:
            if piece.span.name == name:
                piece.master.clamp_(low, high)
        parameter = self.parameters[name]
        parameter.data.clamp_(low, high)
        if hasattr(parameter, "ds_tensor"):
            parameter.ds_tensor.data.clamp_(low, high)

    def squared_gradient_norms(self) -> dict[str, Tensor]:
        """Of this rank's part of each tower; their sums over ranks are the towers'."""
        towers = [*TOWERS.values(), "heads"]
        gradients = self.gradients()
        totals = torch.zeros(len(towers), device=gradients[0].device if gradients else "cpu")
        if gradients:
            of_tower = torch.tensor([towers.index(tower_of(piece.span.name)) for piece in self.own], device=totals.device)
            totals.index_add_(0, of_tower, torch.stack(torch._foreach_norm(gradients)).float().square())
        return dict(zip(towers, totals.unbind(), strict=True))


def tower_of(name: str) -> str:
    """vision, text, fusion or heads."""
    return TOWERS.get(name.partition(".")[0], "heads")


def partition_of(optimizer: Any, model: nn.Module, zero_stage: int, rank: int, world_size: int) -> Partition:
    """Of a DeepSpeed engine's optimizer (of stage 0: of any AdamW), with parameters named as in `model`.

    AdamW's state is filled with zeros where it has none yet.
    """
    parameters = dict(model.named_parameters())
    return (_replicated if zero_stage == 0 else _flat_groups if zero_stage < 3 else _sharded_parameters)(optimizer, parameters, rank, world_size)


def _replicated(adamw: torch.optim.Optimizer, parameters: dict[str, nn.Parameter], rank: int, world_size: int) -> Partition:
    flat = Flat.of({name: parameter.shape for name, parameter in parameters.items()}, world_size)
    states = {name: _adam_state(adamw, parameter) for name, parameter in parameters.items()}

    def piece(span: Span) -> Piece:
        moments = (states[span.name][moment] for moment in MOMENTS)
        return Piece(span, *(tensor.detach().view(-1).narrow(0, span.start, span.length) for tensor in (parameters[span.name], *moments)))

    def gradients() -> list[Tensor]:
        return [_gradient(parameters[piece.span.name]).view(-1).narrow(0, piece.span.start, piece.span.length) for piece in own]

    own = [piece(span) for span in flat.spans(rank)]
    held = [piece(Span(name, parameter.shape, 0, parameter.numel(), 0)) for name, parameter in parameters.items()]
    return Partition(rank, [flat], own, held, [state["step"] for state in states.values()], parameters, lambda: None, gradients)


def _flat_groups(zero: Any, parameters: dict[str, nn.Parameter], rank: int, world_size: int) -> Partition:
    names = {id(parameter): name for name, parameter in parameters.items()}
    flats = []
    for index, group in enumerate(zero.round_robin_bit16_groups):
        places = zip(group, zero.round_robin_bit16_offsets[index], strict=True)
        placements = tuple(Placement(names[id(parameter)], offset, parameter.shape) for parameter, offset in places)
        flats.append(Flat(placements, zero.single_partition_of_fp32_groups[index].numel(), world_size))
        assert zero.bit16_groups_flat[index].numel() == world_size * flats[-1].slice_size, "ZeRO's partition is not an even split"
    masters = zero.single_partition_of_fp32_groups
    states = [_adam_state(zero.optimizer, master) for master in masters]
    pieces = [piece for flat, master, state in zip(flats, masters, states, strict=True) for piece in _pieces(flat.spans(rank), master, state)]

    def gradients() -> list[Tensor]:
        found = []
        if zero.cpu_offload:
            zero._wait_for_offload_copies()
        for index, (flat, master) in enumerate(zip(flats, masters, strict=True)):
            whole = master.grad if zero.cpu_offload else _joined(zero.averaged_gradients[index])
            found += [whole.narrow(0, span.offset, span.length) for span in flat.spans(rank)]
        return found

    return Partition(rank, flats, pieces, pieces, [state["step"] for state in states], parameters, zero.update_lp_params, gradients)


def _sharded_parameters(zero: Any, parameters: dict[str, nn.Parameter], rank: int, world_size: int) -> Partition:
    names = {id(parameter): name for name, parameter in parameters.items()}
    flats, pieces, offsets = [], [], []
    masters = zero.fp32_partitioned_groups_flat
    states = [_adam_state(zero.optimizer, master) for master in masters]
    for group, (parameters_of_group, master, state) in enumerate(zip(zero.fp16_groups, masters, states, strict=True)):
        before = 0
        for parameter in parameters_of_group:
            placement = Placement(names[id(parameter)], 0, parameter.ds_shape)
            flats.append(Flat((placement,), parameter.ds_tensor.ds_numel, world_size))
            spans = [Span(span.name, span.shape, span.start, span.length, before) for span in flats[-1].spans(rank)]
            pieces += _pieces(spans, master, state)
            offsets += [(group, before, span.length) for span in spans]
            before += parameter.ds_tensor.ds_numel

    def refresh() -> None:
        for group, compute in enumerate(zero.fp16_partitioned_groups_flat):
            compute.data.copy_(masters[group].data)
            zero._unflatten_partitioned_parameters(group)
        if zero.persistent_parameters:  # small ones, which stay whole on every rank
            zero.persistent_parameters[0].partition(zero.persistent_parameters)
        gather_small(zero)

    def gradients() -> list[Tensor]:
        whole = [masters[group].grad if zero.offload_optimizer else _joined(zero.averaged_gradients[group]) for group in range(len(masters))]
        return [whole[group].narrow(0, offset, length) for group, offset, length in offsets]

    return Partition(rank, flats, pieces, pieces, [state["step"] for state in states], parameters, refresh, gradients, lambda: gather_small(zero))


def _pieces(spans: Sequence[Span], master: Tensor, state: dict[str, Tensor]) -> list[Piece]:
    return [
        Piece(span, *(tensor.detach().narrow(0, span.offset, span.length) for tensor in (master, *(state[moment] for moment in MOMENTS)))) for span in spans
    ]


def _adam_state(adamw: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    state: dict[str, Tensor] = adamw.state[parameter]
    if not state:
        fused = any(group.get("fused") for group in adamw.param_groups)
        state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device if fused else "cpu")
        for moment in MOMENTS:
            state[moment] = torch.zeros_like(parameter, memory_format=torch.preserve_format, requires_grad=False)
    return state


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.view(-1) for part in parts])


def _gradient(parameter: nn.Parameter) -> Tensor:
    return parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
