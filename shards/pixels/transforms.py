"""From an encoded picture to what the model sees, as uint8; normalisation happens on the device: `(x / 255 - MEAN) / STD`.

Pictures are cropped, then resized by Pillow's antialiased bicubic filter, in training as in evaluation: it is what the published models saw.
"""

import math
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.core.errors import ConfigError
from shards.pixels import native
from shards.pixels.decode import open_picture
from shards.pixels.randaugment import RandAugment, Sharpness, drawn_operations

Picture = npt.NDArray[np.uint8]
Draws = npt.NDArray[np.float64]
Box = tuple[int, int, int, int]  # top, left, height, width
Mode = Literal["fast", "parity"]

NO_DRAWS: Draws = np.empty(0)
MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's, which ALBEF takes
STD = (0.26862954, 0.26130258, 0.27577711)

_TRIES = 10
_CROP_DRAWS = 4 * _TRIES  # area, ratio, top, left of each try
_LOG_RATIO = math.log(4 / 3)
_REDUCTIONS = (8, 4, 2)  # libjpeg decodes to these fractions of the size quickly; others in between are slower than the whole


class Transform(Protocol):
    """An encoded picture and `num_draws` uniforms of (0, 1), which hold all randomness, to `uint8 [resolution, resolution, 3]`.

    In two steps, so that what each takes can be told apart: `decode`, and `finish` with the same draws.
    """

    @property
    def resolution(self) -> int: ...

    @property
    def num_draws(self) -> int: ...

    def decode(self, data: bytes, draws: Draws) -> Picture:
        """The pixels it needs, uint8 [height, width, 3].

        Raises DataError: a damaged picture.
        """
        ...

    def finish(self, pixels: Picture, draws: Draws, out: Picture | None = None) -> Picture:
        """Written to `out` where given."""
        ...


@dataclass(frozen=True)
class PretrainTransform:
    """Random crop of `scale` of the area, resized to a square, flipped half of the time, then RandAugment.

    Both modes decode, crop, resize and flip as Pillow and torchvision do, pixel for pixel. "parity" does so always and computes the original's operations
    exactly. "fast" moves the edges of a crop of more than twice the resolution by a few pixels and decodes it at a half, a quarter or an eighth of
    its size, and interpolates in steps of 1/32 pixel, once for warps that follow each other.
    """

    resolution: int
    scale: tuple[float, float] = (0.2, 1.0)
    flip: bool = True
    randaugment: bool = True
    sharpness: Sharpness = "clipped"
    mode: Mode = "fast"
    settings: RandAugment = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ConfigError(f"crop scale {self.scale}: expected two shares of the area, 0 < smallest <= largest <= 1")
        object.__setattr__(self, "settings", RandAugment(sharpness=self.sharpness, exact=self.mode == "parity"))

    @property
    def num_draws(self) -> int:
        return _CROP_DRAWS + 1 + self.settings.num_draws

    def __call__(self, data: bytes, draws: Draws, out: Picture | None = None) -> Picture:
        """Both steps. Raises what `decode` raises."""
        return self.finish(self.decode(data, draws), draws, out)

    def decode(self, data: bytes, draws: Draws) -> Picture:
        """The random crop, which in "fast" may be a half, a quarter or an eighth of its size."""
        source = open_picture(data)
        box = crop_box(source.height, source.width, self.scale, draws[:_CROP_DRAWS])
        reduce = _reduction(box, self.resolution) if self.mode == "fast" else 1
        return source.crop(*_on_grid(box, reduce, source.height, source.width), reduce)

    def finish(self, pixels: Picture, draws: Draws, out: Picture | None = None) -> Picture:
        """The crop resized, flipped and augmented."""
        picture = resized(pixels, self.resolution, mirrored=self.flip and bool(draws[_CROP_DRAWS] < 0.5), out=out)
        if self.randaugment:
            augmented = self.settings.apply(picture, self.operations(draws))
            if augmented is not picture:
                picture[:] = augmented
        return picture

    def operations(self, draws: Draws) -> list[tuple[str, int]]:
        """RandAugment's (name, sign) that the draws stand for, whether they are applied here or later, on the device."""
        return drawn_operations(draws[_CROP_DRAWS + 1 :])


@dataclass(frozen=True)
class EvalTransform:
    """The whole picture resized to a square."""

    resolution: int
    num_draws: int = field(default=0, init=False)

    def __call__(self, data: bytes, draws: Draws = NO_DRAWS, out: Picture | None = None) -> Picture:
        """Both steps. Raises what `decode` raises."""
        return self.finish(self.decode(data, draws), draws, out)

    def decode(self, data: bytes, draws: Draws = NO_DRAWS) -> Picture:  # noqa: ARG002  # a Transform
        """The whole picture."""
        source = open_picture(data)
        return source.crop(0, 0, source.height, source.width)

    def finish(self, pixels: Picture, draws: Draws = NO_DRAWS, out: Picture | None = None) -> Picture:  # noqa: ARG002  # a Transform
        """Resized to the square."""
        return resized(pixels, self.resolution, out=out)


def resized(image: Picture, resolution: int, mirrored: bool = False, out: Picture | None = None) -> Picture:
    """Square, by Pillow's antialiased bicubic filter, bit for bit; mirrored left to right where asked."""
    out = np.empty((resolution, resolution, 3), np.uint8) if out is None else out
    whole = np.ascontiguousarray(image)
    if native.resize is not None:
        native.resize.bicubic(whole, out, mirrored)
    else:
        square = np.asarray(Image.fromarray(whole).resize((resolution, resolution), Image.Resampling.BICUBIC))
        out[:] = square[:, ::-1] if mirrored else square
    return out


def _reduction(box: Box, resolution: int) -> int:
    """The largest that leaves the crop at least as large as the result."""
    return next((reduce for reduce in _REDUCTIONS if min(box[2:]) >= reduce * resolution), 1)


def _on_grid(box: Box, reduce: int, height: int, width: int) -> Box:
    """The box widened to multiples of `reduce`, within the picture."""
    top, left = box[0] // reduce * reduce, box[1] // reduce * reduce
    bottom, right = -(-(box[0] + box[2]) // reduce) * reduce, -(-(box[1] + box[3]) // reduce) * reduce
    return top, left, min(bottom, height) - top, min(right, width) - left


def crop_box(height: int, width: int, scale: tuple[float, float], draws: Draws) -> Box:
    """(top, left, height, width) of a random crop, distributed as torchvision's RandomResizedCrop draws it.

    The area is uniform in `scale`, the logarithm of the aspect ratio uniform between 3:4 and 4:3; ten tries, then the largest centred crop.
    """
    for area_draw, ratio_draw, top_draw, left_draw in draws.reshape(_TRIES, 4).tolist():
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
