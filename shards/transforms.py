"""From a decoded picture to what the model sees, as uint8; normalisation happens on the device: `(x / 255 - MEAN) / STD`.

Pictures are resized by Pillow's antialiased bicubic filter, cropped first, in training as in evaluation: it is what the published
models saw. OpenCV's is 6 to 10 times faster but aliases when it shrinks (mean difference 4 of 255 at 128 -> 64 pixels), and decoding, not
resizing, is the larger cost.
"""

import math
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.core.errors import ConfigError
from shards.randaugment import RandAugment, Sharpness

Picture = npt.NDArray[np.uint8]
Draws = npt.NDArray[np.float64]

MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's, which ALBEF takes
STD = (0.26862954, 0.26130258, 0.27577711)

_TRIES = 10
_CROP_DRAWS = 4 * _TRIES  # area, ratio, top, left of each try
_LOG_RATIO = math.log(4 / 3)


class Transform(Protocol):
    """`(image uint8 [H, W, 3], draws float64 [num_draws]) -> uint8 [R, R, 3]`; all randomness comes from the draws."""

    @property
    def num_draws(self) -> int: ...

    def __call__(self, image: Picture, draws: Draws) -> Picture: ...


@dataclass(frozen=True)
class PretrainTransform:
    """Random crop of `scale` of the area, resized to a square, flipped half of the time, then RandAugment."""

    resolution: int
    scale: tuple[float, float] = (0.2, 1.0)
    flip: bool = True
    randaugment: bool = True
    sharpness: Sharpness = "clipped"
    _randaugment: RandAugment = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ConfigError(f"crop scale {self.scale}: expected two shares of the area, 0 < smallest <= largest <= 1")
        object.__setattr__(self, "_randaugment", RandAugment(sharpness=self.sharpness))

    @property
    def num_draws(self) -> int:
        return _CROP_DRAWS + 1 + self._randaugment.num_draws

    def __call__(self, image: Picture, draws: Draws) -> Picture:
        """`uint8 [H, W, 3]` and `num_draws` uniforms of (0, 1) -> `uint8 [resolution, resolution, 3]`."""
        top, left, height, width = crop_box(image.shape[0], image.shape[1], self.scale, draws[:_CROP_DRAWS])
        picture = resized(image[top : top + height, left : left + width], self.resolution)
        if self.flip and draws[_CROP_DRAWS] < 0.5:
            picture = np.ascontiguousarray(picture[:, ::-1])
        return self._randaugment(picture, draws[_CROP_DRAWS + 1 :]) if self.randaugment else picture


@dataclass(frozen=True)
class EvalTransform:
    """The whole picture resized to a square."""

    resolution: int
    num_draws: int = field(default=0, init=False)

    def __call__(self, image: Picture, draws: Draws | None = None) -> Picture:  # noqa: ARG002  # a Transform
        return resized(image, self.resolution)


def resized(image: Picture, resolution: int) -> Picture:
    """Square, by Pillow's antialiased bicubic filter."""
    return np.array(Image.fromarray(np.ascontiguousarray(image)).resize((resolution, resolution), Image.Resampling.BICUBIC))


def crop_box(height: int, width: int, scale: tuple[float, float], draws: Draws) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a random crop, distributed as torchvision's RandomResizedCrop draws it.

    The area is uniform in `scale`, the logarithm of the aspect ratio uniform between 3:4 and 4:3; ten tries, then the largest centred crop.
    """
    for area_draw, ratio_draw, top_draw, left_draw in draws.reshape(_TRIES, 4):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * area_draw)
        ratio = math.exp(_LOG_RATIO * (2 * ratio_draw - 1))
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            return int(top_draw * (height - crop_height + 1)), int(left_draw * (width - crop_width + 1)), crop_height, crop_width
    crop_width, crop_height = width, height
    if width / height < 3 / 4:
        crop_height = round(width / (3 / 4))
    elif width / height > 4 / 3:
        crop_width = round(height * (4 / 3))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width
