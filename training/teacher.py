"""The momentum teacher: an fp32 moving average of the student, kept in slices like ZeRO keeps the optimizer's state (paper section 3.2)."""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from training.flat_groups import FlatGroup
from training.model import Albef


class Teacher:
    """theta_m <- m * theta_m + (1 - m) * theta, once after each applied optimizer step.

    Each rank averages only its own slice against its slice of ZeRO's fp32 master weights: no communication. One all-gather a group then
    refreshes the weights the teacher's forward pass uses; these are views into the flat tensors, so compute in fp32 costs no second copy.
    """

    def __init__(self, student: Albef, groups: Sequence[FlatGroup], momentum: float) -> None:
        self.model = copy.deepcopy(student).requires_grad_(False).eval()
        self.momentum = momentum
        self._groups = groups
        self._flats = [group.flatten(dict(self.model.named_parameters())) for group in groups]
        self._point_model_into_flats()

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the student; call it after an applied step only, since a skipped one must not age the teacher."""
        shards = [group.own(flat) for group, flat in zip(self._groups, self._flats, strict=True)]
        torch._foreach_lerp_(shards, [group.master.detach() for group in self._groups], 1 - self.momentum)
        for group, flat, shard in zip(self._groups, self._flats, shards, strict=True):
            if group.world_size > 1:
                flat.copy_(group.gather(shard))

    def state_dict(self) -> dict[str, Tensor]:
        """Full fp32 weights by the student's parameter names."""
        return {name: view for group, flat in zip(self._groups, self._flats, strict=True) for name, view in group.named(flat).items()}

    def load_state_dict(self, weights: Mapping[str, Tensor]) -> None:
        for group, flat in zip(self._groups, self._flats, strict=True):
            flat.copy_(group.flatten(weights))

    def _point_model_into_flats(self) -> None:
        parameters = dict(self.model.named_parameters())
        for name, view in self.state_dict().items():
            parameters[name].data = view
