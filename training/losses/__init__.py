"""The pre-training objectives; a new one is its file and its line in `LOSSES`."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from pipeline.core.choice import chosen_from
from pipeline.core.errors import ConfigError
from training.losses.itc import ImageTextContrastive
from training.losses.itm import ImageTextMatching
from training.losses.mlm import MaskedLanguageModeling
from training.passes import FusionRows
from training.step import Read, Step


@runtime_checkable
class Loss(Protocol):
    """One objective of a step; its fields are its options."""

    @property
    def weight(self) -> float:
        """Its factor in the sum."""

    def reads(self, alpha: float, step: int) -> frozenset[Read]:
        """What it will ask of a step with this weight of soft targets and this number; what no loss reads is not computed."""

    def fusion_rows(self, step: Step) -> Sequence[FusionRows]:
        """The text-image pairs it wants fused and which of their states; all losses' pairs go through the fusion layers in one pass."""

    def __call__(self, step: Step, fused: Sequence[Float[Tensor, "rows h"]]) -> Float[Tensor, ""]:
        """The loss, averaged over the step's groups; `fused` are the states of its `fusion_rows`."""


LOSSES: dict[str, type[Loss]] = {"itc": ImageTextContrastive, "itm": ImageTextMatching, "mlm": MaskedLanguageModeling}


def losses_of(chosen: Mapping[str, Mapping[str, Any] | None]) -> dict[str, Loss]:
    """The objectives that `training.losses` chooses, with their options.

    Raises:
        ConfigError: an unknown name or option, a value that cannot be, or hard negatives by similarities that nothing teaches.
    """
    losses = chosen_from(LOSSES, chosen, "training.losses")
    itc, itm = losses.get("itc"), losses.get("itm")
    if isinstance(itm, ImageTextMatching) and itm.hard_from_step is not None and not (itc and itc.weight):
        raise ConfigError(
            f"training.losses.itm.hard_from_step is {itm.hard_from_step}, which draws negatives by ITC's similarities, but without training.losses.itc, or at "
            "weight 0, nothing teaches these; set hard_from_step to null for uniform negatives, or add itc"
        )
    return losses
