"""ALBEF's RandAugment: ten operations without colour changes, on uint8 pictures; strengths as at magnitude 7 of 10.

Operations are of three kinds: tables (a new value for each value of a channel), warps, and sharpness. Tables that follow each other become one, without
changing a bit; so do warps, unless `exact`: one interpolation is less blurred than two.
"""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.core.errors import ConfigError
from shards.pixels.affine import Matrix, one_after_the_other, warped

Picture = npt.NDArray[np.uint8]
Table = npt.NDArray[np.uint8]  # [3, 256]: the new value of each channel's each value
Histogram = npt.NDArray[np.int64]  # [3, 256]
Sharpness = Literal["clipped", "original"]

OPERATIONS = ("Identity", "AutoContrast", "Equalize", "Brightness", "Sharpness", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
DRAWS_PER_OPERATION = 3  # which one, whether at all, which sign
_MAX_MAGNITUDE = 10
_LEVELS = np.arange(256)
_SAME: npt.NDArray[np.uint8] = _LEVELS.astype(np.uint8)
_BLUR = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], dtype=np.float32) / 13  # Pillow's SMOOTH, which sharpness moves away from


@dataclass(frozen=True)
class RandAugment:
    """`num_operations` drawn with replacement, each then applied with probability one half.

    `exact`: pixel for pixel as the original's code, on OpenCV 5, gives them.
    """

    num_operations: int = 2
    magnitude: float = 7
    sharpness: Sharpness = "clipped"
    exact: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.magnitude <= _MAX_MAGNITUDE:
            raise ConfigError(f"randaugment magnitude {self.magnitude} is not within 0..{_MAX_MAGNITUDE}")

    @property
    def num_draws(self) -> int:
        return self.num_operations * DRAWS_PER_OPERATION

    @property
    def factor(self) -> float:
        """Of brightness and sharpness, which have no sign: they never darken or blur."""
        return self.magnitude / _MAX_MAGNITUDE * 1.8 + 0.1

    def apply(self, image: Picture, operations: Iterable[tuple[str, int]]) -> Picture:
        """The operations (name, sign) in their order."""
        for kind, group in itertools.groupby(operations, key=lambda operation: KIND[operation[0]]):
            if kind == "table":
                image = _looked_up(image, [_TABLES[name] if name in _TABLES else brightness_table(self.factor) for name, _ in group])
            elif kind == "warp":
                image = self._warped(image, [self.matrix(name, sign, image.shape[0], image.shape[1]) for name, sign in group])
            elif kind == "sharpness":
                for _ in group:
                    image = sharpness(image, self.factor, self.sharpness)
        return image

    def matrix(self, name: str, sign: int, height: int, width: int) -> Matrix:
        """Where a warp moves the pixels of a picture of that size."""
        return _MATRICES[name](sign * self.magnitude / _MAX_MAGNITUDE, height, width)

    def _warped(self, image: Picture, matrices: list[Matrix]) -> Picture:
        for matrix in matrices if self.exact else [*itertools.accumulate(matrices, one_after_the_other)][-1:]:
            image = warped(image, matrix, self.exact)
        return image


def drawn_operations(draws: npt.NDArray[np.float64]) -> list[tuple[str, int]]:
    """Names and signs of the operations that are applied."""
    rows = draws.reshape(-1, DRAWS_PER_OPERATION).tolist()
    return [(OPERATIONS[int(which * len(OPERATIONS))], 1 if sign < 0.5 else -1) for which, whether, sign in rows if whether < 0.5]


def auto_contrast_table(histogram: Histogram) -> Table:
    """Stretch each channel to the full range."""
    return np.stack([_stretched(channel) for channel in histogram])


def equalize_table(histogram: Histogram) -> Table:
    """Flatten each channel's histogram."""
    return np.stack([_equalized(channel) for channel in histogram])


def brightness_table(factor: float) -> Callable[[Histogram], Table]:
    """Every value times `factor`, whatever the histogram."""
    table = np.tile(np.clip(_LEVELS.astype(np.float32) * factor, 0, 255).astype(np.uint8), (3, 1))
    return lambda _: table


def sharpness(image: Picture, factor: float, rounding: Sharpness = "clipped") -> Picture:
    """Away from the blurred picture by `factor`; the outermost pixels stay.

    The original lets values beyond 0..255 wrap around (an edge of 3|250 becomes 239|14); `rounding="original"` keeps that.
    """
    blurred = cv2.filter2D(image, -1, _BLUR)[1:-1, 1:-1].astype(np.float32)
    inner = blurred + np.float32(factor) * (image[1:-1, 1:-1].astype(np.float32) - blurred)
    sharpened = image.copy()
    sharpened[1:-1, 1:-1] = inner.astype(np.int32).astype(np.uint8) if rounding == "original" else np.clip(inner, 0, 255).astype(np.uint8)
    return sharpened


# What each operation is; warps by the share of their largest strength, with its sign.
_TABLES: dict[str, Callable[[Histogram], Table]] = {"AutoContrast": auto_contrast_table, "Equalize": equalize_table}
_MATRICES: dict[str, Callable[[float, int, int], Matrix]] = {
    "ShearX": lambda share, *_: np.array([[1, 0.3 * share, 0], [0, 1, 0]]),
    "ShearY": lambda share, *_: np.array([[1, 0, 0], [0.3 * share, 1, 0]]),
    "TranslateX": lambda share, *_: np.array([[1, 0, -10 * share], [0, 1, 0]]),  # pixels, whatever the size
    "TranslateY": lambda share, *_: np.array([[1, 0, 0], [0, 1, -10 * share]]),
    "Rotate": lambda share, height, width: cv2.getRotationMatrix2D((width / 2, height / 2), 30 * share, 1),  # degrees
}
KIND = {"Identity": "none", "Brightness": "table", "Sharpness": "sharpness", **dict.fromkeys(_TABLES, "table"), **dict.fromkeys(_MATRICES, "warp")}


def _looked_up(image: Picture, tables: list[Callable[[Histogram], Table]]) -> Picture:
    """Tables one after the other, as one: each is made from the histogram that the ones before it would have left."""
    counts = np.stack([cv2.calcHist([image], [channel], None, [256], [0, 256])[:, 0] for channel in range(3)]).astype(np.int64)
    whole = tables[0](counts)
    for table in tables[1:]:
        whole = np.take_along_axis(table(_through(whole, counts)), whole.astype(np.int64), axis=1)
    changed: Picture = cv2.LUT(image, np.ascontiguousarray(whole.T)[None])
    return changed


def _through(table: Table, counts: Histogram) -> Histogram:
    """The histogram after the table."""
    return np.stack([np.bincount(values, weights=count, minlength=256) for values, count in zip(table, counts, strict=True)]).astype(np.int64)


def _stretched(histogram: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    present = np.flatnonzero(histogram)
    low, high = float(present[0]), float(present[-1])
    if high <= low:
        return _SAME
    scale = 255 / (high - low)
    table: npt.NDArray[np.uint8] = np.clip(_LEVELS * scale - low * scale, 0, 255).astype(np.uint8)
    return table


def _equalized(histogram: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    step = int(histogram[histogram > 0][:-1].sum()) // 255
    if step == 0:
        return _SAME
    below = np.concatenate([[step // 2], histogram[:-1]])
    table: npt.NDArray[np.uint8] = np.clip(np.cumsum(below) // step, 0, 255).astype(np.uint8)
    return table
