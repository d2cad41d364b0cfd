"""The momentum teacher: an fp32 moving average of the student, kept in slices like ZeRO keeps the optimizer's state (paper section 3.2)."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from training.model import Albef
from training.zero.layout import Flat, Span
from training.zero.partition import Partition
from training.zero.units import GatheredUnits


class Teacher:
    """theta_m <- m * theta_m + (1 - m) * theta, once after each applied optimizer step.

    Each rank averages only its own slices against its slices of the fp32 master weights: no communication. The teacher's forward pass uses a copy in
    the compute type, which one all-gather a flat tensor refreshes; in fp32 on one rank it is the average itself. With `shard_compute` (ZeRO-3) there is
    no whole copy: each block's weights are gathered for its forward pass and given back after it.

    Args:
        model: a copy of the student, which becomes the teacher.
        partition: of the student.
        shard_compute: with several ranks; then `units` has the root, to be gathered around the forward pass.
    """

    def __init__(self, model: Albef, partition: Partition, momentum: float, compute_type: torch.dtype, *, shard_compute: bool = False) -> None:
        self.model = model.requires_grad_(False).eval()
        self.momentum = momentum
        self._flats = partition.flats
        self._masters = [piece.master for piece in partition.own]
        device = next(self.model.parameters()).device
        self._slices = [torch.zeros(flat.slice_size, device=device) for flat in self._flats]
        self._spans = [
            (span, values.narrow(0, span.offset, span.length))
            for flat, values in zip(self._flats, self._slices, strict=True)
            for span in flat.spans(partition.rank)
        ]
        self._load_spans(dict(self.model.named_parameters()))
        self.units: GatheredUnits | None = None
        self._compute: list[Tensor] | None = None
        if shard_compute and self._flats[0].world_size > 1:
            self.units = GatheredUnits(self.model, self._flats, self._slices, compute_type)
        else:
            self._compute = [_compute_copy(flat, values, compute_type) for flat, values in zip(self._flats, self._slices, strict=True)]
            _point_into(self.model, self._flats, self._compute)
            self.refresh()

    @property
    def spans(self) -> Sequence[tuple[Span, Tensor]]:
        """The average of this rank's spans of parameters, each [length], in the order of the partition's own pieces."""
        return self._spans

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the student; call it after an applied step only, since a skipped one must not age the teacher."""
        averages = [average for _, average in self._spans]
        masters = [master.to(average.device) for master, average in zip(self._masters, averages, strict=True)]  # offloaded ones are elsewhere
        torch._foreach_lerp_(averages, masters, 1 - self.momentum)
        self.refresh()

    def whole_during(self, objective: nn.Module) -> None:
        """Of a sharded compute copy, what is not in blocks is gathered for the forward pass of `objective` alone."""
        if self.units:
            units = self.units
            objective.register_forward_pre_hook(lambda *_: units.gather_root())
            objective.register_forward_hook(lambda *_: units.release_root())

    @contextmanager
    def whole(self) -> Iterator[None]:
        """For passes outside that objective; every rank must call."""
        if self.units:
            self.units.gather_root()
        yield
        if self.units:
            self.units.release_root()

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Whole fp32 weights by the student's parameter names; those that are not there stay."""
        self._load_spans(weights)
        self.refresh()

    def refresh(self) -> None:
        """After `spans` were written: bring the compute copy up to date; every rank must call."""
        if self._compute is None:  # a unit is gathered anew at each use
            return
        for flat, average, compute in zip(self._flats, self._slices, self._compute, strict=True):
            if compute is not average:
                flat.gather(average.to(compute.dtype), out=compute)

    def _load_spans(self, weights: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for span, average in (pair for pair in self._spans if pair[0].name in weights):
                average.copy_(weights[span.name].reshape(-1).narrow(0, span.start, span.length))


def _compute_copy(flat: Flat, average: Tensor, compute_type: torch.dtype) -> Tensor:
    if flat.world_size == 1 and compute_type == average.dtype:
        return average
    return average.new_zeros(flat.world_size * flat.slice_size, dtype=compute_type)


def _point_into(model: nn.Module, flats: Sequence[Flat], compute: Sequence[Tensor]) -> None:
    parameters = dict(model.named_parameters())
    for flat, tensor in zip(flats, compute, strict=True):
        for name, view in flat.named(tensor).items():
            parameters[name].data = view
