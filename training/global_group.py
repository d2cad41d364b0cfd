"""One group over all ranks: what each rank must know of the others' pairs where `training.negatives` is global."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from training.distributed import World
from training.passes import Candidates


@dataclass(frozen=True)
class GlobalGroup:
    """The micro-batches of all ranks, M pairs each, in rank order: pair i of rank r is row r * M + i of the group.

    Every rank must ask for the same things in the same order; a backward pass through `texts` asks, too.
    """

    world: World
    max_tokens: int  # of any text; gathered ones are padded to it, as a rank does not know how long those of others are

    def gather(self, rows: Tensor) -> Tensor:
        """Rows of all ranks, without a gradient: [M, ...] -> [B, ...]."""
        return self.world.gather(rows)

    def mean(self, count: Tensor) -> Tensor:
        """Of all ranks."""
        return self.world.mean(count)

    def first_row(self, num_pairs: int) -> int:
        """Where this rank's pairs start, of which it has so many."""
        return self.world.rank * num_pairs

    def others(self, gathered: Tensor) -> tuple[Tensor, Tensor]:
        """The rows of the ranks before this one and of those behind it; nothing is copied."""
        num_own = len(gathered) // self.world.world_size
        first = self.first_row(num_own)
        return gathered[:first], gathered[first + num_own :]

    def texts(self, states: Float[Tensor, "m l h"], mask: Int[Tensor, "m l"]) -> Candidates:
        """The texts of all ranks. What a rank makes of another's comes back to its owner as a gradient."""
        missing = self.max_tokens - mask.shape[1]
        gathered: Tensor = _Gather.apply(F.pad(states, (0, 0, 0, missing)), self.world)
        slots = torch.arange(gathered.shape[0] * self.max_tokens, device=gathered.device)
        return Candidates(gathered.flatten(0, 1), slots.view(-1, self.max_tokens), self.gather(F.pad(mask, (0, missing))))

    def texts_for_own_pictures(self, image_for_text: Int[Tensor, " m"]) -> tuple[Int[Tensor, " k"], Int[Tensor, " k"]]:
        """Rows of the texts, of whichever rank, whose drawn picture is this rank's, and the pictures' rows here; -1 is no picture.

        Their number K is read back from the device, as nothing but the draw decides it: the one wait of a step that the other mode does without.
        """
        first, wanted = self.first_row(len(image_for_text)), self.gather(image_for_text)
        texts = torch.nonzero((wanted >= first) & (wanted < first + len(image_for_text))).squeeze(1)
        return texts, wanted.index_select(0, texts) - first


class _Gather(torch.autograd.Function):
    """Rows of all ranks; the gradients that all ranks have for a row are summed where the row came from."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, world: World) -> Tensor:
        ctx.world, ctx.num_rows = world, len(rows)
        return world.gather(rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        first = ctx.world.rank * ctx.num_rows
        return ctx.world.sum(gradient)[first : first + ctx.num_rows], None  # gloo has no reduce-scatter
