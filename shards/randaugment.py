"""ALBEF's RandAugment: ten operations without colour changes, on uint8 pictures; strengths as at magnitude 7 of 10."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.core.errors import ConfigError

Picture = npt.NDArray[np.uint8]
Sharpness = Literal["clipped", "original"]

FILL = (128, 128, 128)  # what comes in from outside the picture
DRAWS_PER_OPERATION = 3  # which one, whether at all, which sign
_MAX_MAGNITUDE = 10
_LEVELS = np.arange(256)
_BLUR = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], dtype=np.float32) / 13  # Pillow's SMOOTH, which sharpness moves away from


def identity(image: Picture) -> Picture:
    return image


def auto_contrast(image: Picture) -> Picture:
    """Stretch each channel to the full range."""
    return _by_channel(image, _stretched)


def equalize(image: Picture) -> Picture:
    """Flatten each channel's histogram."""
    return _by_channel(image, _equalized)


def brightness(image: Picture, factor: float) -> Picture:
    return _looked_up(image, np.clip(_LEVELS.astype(np.float32) * factor, 0, 255).astype(np.uint8))


def sharpness(image: Picture, factor: float, rounding: Sharpness = "clipped") -> Picture:
    """Away from the blurred picture by `factor`; the outermost pixels stay.

    The original lets values beyond 0..255 wrap around (an edge of 3|250 becomes 239|14); `rounding="original"` keeps that.
    """
    blurred = cv2.filter2D(image, -1, _BLUR)[1:-1, 1:-1].astype(np.float32)
    inner = blurred + np.float32(factor) * (image[1:-1, 1:-1].astype(np.float32) - blurred)
    sharpened = image.copy()
    sharpened[1:-1, 1:-1] = inner.astype(np.int32).astype(np.uint8) if rounding == "original" else np.clip(inner, 0, 255).astype(np.uint8)
    return sharpened


def shear_x(image: Picture, factor: float) -> Picture:
    return _warped(image, [[1, factor, 0], [0, 1, 0]])


def shear_y(image: Picture, factor: float) -> Picture:
    return _warped(image, [[1, 0, 0], [factor, 1, 0]])


def translate_x(image: Picture, pixels: float) -> Picture:
    return _warped(image, [[1, 0, -pixels], [0, 1, 0]])


def translate_y(image: Picture, pixels: float) -> Picture:
    return _warped(image, [[1, 0, 0], [0, 1, -pixels]])


def rotate(image: Picture, degrees: float) -> Picture:
    height, width = image.shape[:2]
    return _warped(image, cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1))


@dataclass(frozen=True)
class RandAugment:
    """`num_operations` drawn with replacement, each then applied with probability one half."""

    num_operations: int = 2
    magnitude: float = 7
    sharpness: Sharpness = "clipped"

    def __post_init__(self) -> None:
        if not 0 <= self.magnitude <= _MAX_MAGNITUDE:
            raise ConfigError(f"randaugment magnitude {self.magnitude} is not within 0..{_MAX_MAGNITUDE}")

    @property
    def num_draws(self) -> int:
        return self.num_operations * DRAWS_PER_OPERATION

    def __call__(self, image: Picture, draws: npt.NDArray[np.float64]) -> Picture:
        """`draws`: `num_draws` uniforms of (0, 1)."""
        for which, whether, sign in draws.reshape(-1, DRAWS_PER_OPERATION):
            if whether < 0.5:
                image = self.apply(OPERATIONS[int(which * len(OPERATIONS))], image, 1 if sign < 0.5 else -1)
        return image

    def apply(self, name: str, image: Picture, sign: int) -> Picture:
        """One operation at this magnitude; brightness and sharpness have no sign: they never darken or blur."""
        strength = self.magnitude / _MAX_MAGNITUDE
        if name in _WITHOUT_STRENGTH:
            return _WITHOUT_STRENGTH[name](image)
        if name in _WARPS:
            warp, largest = _WARPS[name]
            return warp(image, sign * largest * strength)
        factor = strength * 1.8 + 0.1
        return brightness(image, factor) if name == "Brightness" else sharpness(image, factor, self.sharpness)


_WITHOUT_STRENGTH: dict[str, Callable[[Picture], Picture]] = {"Identity": identity, "AutoContrast": auto_contrast, "Equalize": equalize}
_WARPS: dict[str, tuple[Callable[[Picture, float], Picture], float]] = {  # with what they take at the largest magnitude
    "ShearX": (shear_x, 0.3),
    "ShearY": (shear_y, 0.3),
    "TranslateX": (translate_x, 10),  # pixels, whatever the size
    "TranslateY": (translate_y, 10),
    "Rotate": (rotate, 30),  # degrees
}
OPERATIONS = (*_WITHOUT_STRENGTH, "Brightness", "Sharpness", *_WARPS)


def _by_channel(image: Picture, table_of: Callable[[Picture], Picture | None]) -> Picture:
    tables = [table_of(image[:, :, channel]) for channel in range(3)]
    whole = np.stack([_LEVELS.astype(np.uint8) if table is None else table for table in tables], axis=-1)
    return _looked_up(image, whole[None])


def _stretched(channel: Picture) -> Picture | None:
    low, high = float(channel.min()), float(channel.max())
    if high <= low:
        return None
    scale = 255 / (high - low)
    table: Picture = np.clip(_LEVELS * scale - low * scale, 0, 255).astype(np.uint8)
    return table


def _equalized(channel: Picture) -> Picture | None:
    histogram = np.bincount(channel.ravel(), minlength=256)
    step = int(histogram[histogram > 0][:-1].sum()) // 255
    if step == 0:
        return None
    below = np.concatenate([[step // 2], histogram[:-1]])
    table: Picture = np.clip(np.cumsum(below) // step, 0, 255).astype(np.uint8)
    return table


def _looked_up(image: Picture, table: Picture) -> Picture:
    looked_up: Picture = cv2.LUT(image, table)
    return looked_up


def _warped(image: Picture, matrix: list[list[float]] | npt.NDArray[np.float64]) -> Picture:
    height, width = image.shape[:2]
    warped: Picture = cv2.warpAffine(image, np.asarray(matrix, dtype=np.float32), (width, height), flags=cv2.INTER_LINEAR, borderValue=FILL)
    return warped
