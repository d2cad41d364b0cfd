"""One micro-batch of pairs, with every random draw of the step already made and keyed by item."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8, UInt64
from torch import Tensor

from shards.pixels.transforms import MEAN, STD
from training.device_augment import DrawnRandAugment
from training.masking import IGNORED
from training.packing import TextPacking, pack_texts


@dataclass(frozen=True)
class Batch:
    """B pairs of L tokens in groups of G; built on the host, then moved with `to`."""

    images: UInt8[Tensor, "b 3 r r"] | Float[Tensor, "b 3 r r"]  # uint8 0..255, or float and already normalised
    input_ids: Int[Tensor, "b l"]
    attention_mask: Int[Tensor, "b l"]  # 1 = token, 0 = padding
    masked_ids: Int[Tensor, "b l"]  # input_ids after MLM masking
    mlm_labels: Int[Tensor, "b l"]  # the original id where selected, -100 elsewhere
    gumbel_i2t: Float[Tensor, "b g"]  # noise that draws each image's negative text within its group
    gumbel_t2i: Float[Tensor, "b g"]  # noise that draws each text's negative image within its group
    item_keys: UInt64[np.ndarray, " b"]  # of the items' random streams
    sample_keys: list[str]
    image_ids: Int[Tensor, " b"] | None = None  # the pinned manifest's number of each picture; equal for pairs of one picture
    kept_patches: Int[Tensor, "b k"] | None = None  # of each picture, what the student sees under patch dropout; None is everything
    randaugment: DrawnRandAugment | None = None  # what the device is still to do to the pictures; drawn on the host, by item
    mlm_positions: Int[Tensor, " s"] = field(init=False)  # selected positions in the flattened [B * L]; counted on the host, where that costs no device sync
    packing: TextPacking = field(init=False)  # likewise

    def __post_init__(self) -> None:
        object.__setattr__(self, "mlm_positions", torch.nonzero(self.mlm_labels.flatten() != IGNORED).flatten())
        object.__setattr__(self, "packing", pack_texts(self.attention_mask, self.mlm_labels))

    def __len__(self) -> int:
        return len(self.input_ids)

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch with all tensors on `device`; without waiting where they are pinned."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> "Batch":
        """The same batch in memory that a GPU reads by itself: from other memory a copy makes the host wait."""
        return self._each(Tensor.pin_memory)

    def _each(self, act: Callable[[Tensor], Tensor]) -> "Batch":
        """Without `__post_init__`, which on a device would wait for it."""
        done = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                object.__setattr__(done, name, act(value))
        object.__setattr__(done, "packing", self.packing.each(act))
        return done

    def pixels(self, dtype: torch.dtype) -> Float[Tensor, "b 3 r r"]:
        """Normalised pictures, augmented where that was left to the device; done here so that bytes travel there, not floats."""
        if self.images.dtype != torch.uint8:
            return self.images.to(dtype)
        return normalised(self.randaugment(self.images) if self.randaugment else self.images).to(dtype)


def normalised(images: UInt8[Tensor, "b 3 r r"]) -> Float[Tensor, "b 3 r r"]:
    """float32, contiguous, by CLIP's mean and standard deviation."""
    pixels = images.to(torch.float32, memory_format=torch.contiguous_format).div_(255)  # a view of [B, R, R, 3] is put in order in the same pass
    for channel, (mean, std) in enumerate(zip(MEAN, STD, strict=True)):  # as numbers: tensors of them would be copied to the device, which waits
        pixels[:, channel].sub_(mean).div_(std)
    return pixels
