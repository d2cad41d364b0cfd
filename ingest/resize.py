"""img2dataset's resize modes: the same sizes to the pixel, at a fraction of the time."""

import math
from dataclasses import dataclass

import cv2
import numpy as np

from ingest.header import FULL, Pixels, Scale
from ingest.outcomes import Ended, Outcome
from ingest.store import StoreConfig

JPEG_SIDE = 65_500  # pixels; what libjpeg writes at most
REDUCED_MARGIN = 1.5  # a reduced decode leaves at least so many times the stored size; below, its sharper filter shows beside OpenCV's area
FILTERED_UP_TO = 3.0  # times the stored size: there the three taps are equal, and can do no more
UNFILTERED_UP_TO = 1.02


@dataclass(frozen=True)
class Plan:
    """Sizes (width, height), upright: what the picture is resized to, and what it has after the crop or the border."""

    resized: tuple[int, int]
    stored: tuple[int, int]
    enlarged: bool


def plan(width: int, height: int, store: StoreConfig) -> Plan | None:
    """None when the picture keeps its size.

    Raises:
        Ended: too_large when the result would be.
    """
    side = max(width, height) if store.resize_mode in ("border", "keep_ratio_largest") else min(width, height)
    if store.resize_mode == "no" or (side <= store.image_size and not store.upscale):
        made = None
        stored = (width, height)
    else:
        scale = store.image_size / side
        resized = (max(1, round(width * scale)), max(1, round(height * scale)))
        stored = (store.image_size, store.image_size) if store.resize_mode in ("center_crop", "border") else resized
        made = Plan(resized, stored, enlarged=side <= store.image_size)
    for columns, rows in {stored, made.resized if made else stored}:
        if max(columns, rows) > JPEG_SIDE or columns * rows > max(store.max_pixels, store.image_size**2):
            raise Ended(Outcome.TOO_LARGE, f"{width} x {height} pixels would be stored as {columns} x {rows}")
    return made


def reduced_scale(width: int, height: int, made: Plan, scales: tuple[Scale, ...]) -> Scale:
    """The smallest decode that is still REDUCED_MARGIN times as large as the resized picture."""
    columns, rows = (REDUCED_MARGIN * side for side in made.resized)
    return max((scale for scale in scales if width >= columns * scale and height >= rows * scale), default=FULL)


def resize(pixels: Pixels, size: tuple[int, int], enlarge: bool, fast: bool) -> Pixels:
    """Lanczos to enlarge, area to shrink, as img2dataset; `fast` shrinks by less than FILTERED_UP_TO with three taps and a bilinear."""
    height, width = pixels.shape[:2]
    if (width, height) == size:
        return pixels
    if enlarge:
        return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_LANCZOS4))
    shrink = (width / size[0], height / size[1])
    if not fast or max(shrink) > FILTERED_UP_TO:
        return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))
    if max(shrink) > UNFILTERED_UP_TO:
        pixels = cv2.GaussianBlur(pixels, (3, 3), _sigma(shrink[0]), sigmaY=_sigma(shrink[1]), borderType=cv2.BORDER_REPLICATE)
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_LINEAR))


def fit(pixels: Pixels, stored: tuple[int, int]) -> Pixels:
    """Cut the middle out, or put a white border around."""
    height, width = pixels.shape[:2]
    left, top = max(0, (width - stored[0]) // 2), max(0, (height - stored[1]) // 2)
    pixels = pixels[top : top + stored[1], left : left + stored[0]]
    across, down = stored[0] - pixels.shape[1], stored[1] - pixels.shape[0]
    if not across and not down:
        return pixels
    edges = (down // 2, down - down // 2, across // 2, across - across // 2)
    return np.asarray(cv2.copyMakeBorder(pixels, *edges, cv2.BORDER_CONSTANT, value=(255, 255, 255)))


def _sigma(shrink: float) -> float:
    """Of the Gaussian of three taps before which a bilinear blurs as much (has the same variance) as the mean over `shrink` pixels."""
    outer = min(max((shrink**2 - 1) / 24, 0.001), 0.33)  # the weight of the two outer taps: half the variance that the bilinear lacks
    return math.sqrt(-0.5 / math.log(outer / (1 - 2 * outer)))
