"""The pre-training objectives; a new one is its file and its line in `LOSSES`."""

from typing import ClassVar, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from training.losses.itc import ImageTextContrastive
from training.losses.itm import ImageTextMatching
from training.losses.mlm import MaskedLanguageModeling
from training.step import FusionRows, Step


@runtime_checkable
class Loss(Protocol):
    """One objective of a step; its fields are its options."""

    min_group_size: ClassVar[int]  # fewer pairs in a group leave it undefined

    @property
    def weight(self) -> float:
        """Its factor in the sum."""

    def fusion_rows(self, step: Step) -> FusionRows | None:
        """The text-image pairs it wants fused, or None; all losses' pairs go through the fusion layers in one pass."""

    def __call__(self, step: Step, fused: Float[Tensor, "rows l h"] | None) -> Float[Tensor, ""]:
        """The loss, averaged over the step's groups; `fused` are the states of its `fusion_rows`."""


LOSSES: dict[str, type[Loss]] = {"itc": ImageTextContrastive, "itm": ImageTextMatching, "mlm": MaskedLanguageModeling}
