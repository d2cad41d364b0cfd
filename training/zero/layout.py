"""How ZeRO cuts parameters over ranks: one after another in a flat tensor, padded, in equal slices, one a rank."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Placement:
    """Where one parameter lies inside its flat tensor."""

    name: str
    offset: int
    shape: torch.Size


@dataclass(frozen=True)
class Span:
    """Consecutive elements of one parameter that lie in one rank's slice."""

    name: str
    shape: torch.Size  # of the whole parameter
    start: int  # the first of them, in the flattened parameter
    length: int
    offset: int  # of the first of them, in the slice


@dataclass(frozen=True)
class Flat:
    """Parameters in a flat tensor of `world_size` slices. Stages 0 to 2 have one for many parameters, stage 3 one for each."""

    placements: tuple[Placement, ...]
    slice_size: int
    world_size: int

    @classmethod
    def of(cls, shapes: Mapping[str, torch.Size], world_size: int) -> "Flat":
        """Parameters in this order, without gaps."""
        placements, offset = [], 0
        for name, shape in shapes.items():
            placements.append(Placement(name, offset, shape))
            offset += shape.numel()
        return cls(tuple(placements), -(-offset // world_size), world_size)

    def spans(self, rank: int) -> list[Span]:
        """What of which parameter lies in a rank's slice, in order."""
        first, last = rank * self.slice_size, (rank + 1) * self.slice_size
        spans = []
        for place in self.placements:
            start, end = max(place.offset, first), min(place.offset + place.shape.numel(), last)
            if start < end:
                spans.append(Span(place.name, place.shape, start - place.offset, end - start, start - first))
        return spans

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        """Views of a flat tensor [world_size * slice_size] under the parameters' names and shapes."""
        return {place.name: flat.narrow(0, place.offset, place.shape.numel()).view(place.shape) for place in self.placements}

    def gather(self, own: Tensor, out: Tensor | None = None) -> Tensor:
        """All ranks' slices put together, [world_size * slice_size]; every rank must call. Of one rank it is the slice itself."""
        if self.world_size == 1:
            return own if out is None else out.copy_(own)
        out = own.new_empty(self.world_size * self.slice_size) if out is None else out
        dist.all_gather_into_tensor(out, own.contiguous())
        return out


def owners(flats: Sequence[Flat]) -> dict[str, int]:
    """For each parameter the rank that writes it whole: one that has the most of it, and of these the one with the least to write so far."""
    parts: dict[str, dict[int, int]] = {}
    for flat in flats:
        for rank in range(flat.world_size):
            for span in flat.spans(rank):
                parts.setdefault(span.name, {})[rank] = span.length
    load: dict[int, int] = {}
    chosen = {}
    for name, of_rank in sorted(parts.items(), key=lambda item: (-sum(item[1].values()), item[0])):
        most = max(of_rank.values())
        rank = min((rank for rank, length in of_rank.items() if length == most), key=lambda rank: (load.get(rank, 0), rank))
        chosen[name] = rank
        load[rank] = load.get(rank, 0) + sum(of_rank.values())
    return chosen


def whole_parameters(flats: Sequence[Flat], values: Sequence[Tensor], rank: int, device: torch.device) -> dict[str, Tensor]:
    """Whole parameters, each on its owner alone, on the CPU and nobody else's; every rank must call.

    Args:
        values: this rank's spans of all flats, in order, each [length].
        device: that ranks talk over; offloaded values are elsewhere.

    A rank sends of its slice what others own, once: it holds what it owns and what it sends, never everything.
    """
    owner = owners(flats)
    world_size = flats[0].world_size
    if world_size == 1:
        return _filled([(span, value) for span, value in zip(_spans(flats, 0), values, strict=True)])
    mine = list(zip(_spans(flats, rank), values, strict=True))
    sent = [torch.cat([value for span, value in mine if owner[span.name] == other] or [values[0][:0]]) for other in range(world_size)]
    expected = [[span for span in _spans(flats, other) if owner[span.name] == rank] for other in range(world_size)]
    lengths = [sum(span.length for span in spans) for spans in expected]
    received = values[0].new_empty(sum(lengths), device=device)
    dist.all_to_all_single(received, torch.cat(sent).to(device), lengths, [len(part) for part in sent])
    spans = [span for of_rank in expected for span in of_rank]
    return _filled(zip(spans, torch.split(received, [span.length for span in spans]), strict=True))


def _spans(flats: Sequence[Flat], rank: int) -> list[Span]:
    return [span for flat in flats for span in flat.spans(rank)]


def _filled(spans: "Iterator[tuple[Span, Tensor]] | Sequence[tuple[Span, Tensor]]") -> dict[str, Tensor]:
    whole: dict[str, Tensor] = {}
    for span, value in spans:
        target = whole.setdefault(span.name, torch.empty(span.shape, dtype=value.dtype))
        target.view(-1).narrow(0, span.start, span.length).copy_(value)
    return whole
