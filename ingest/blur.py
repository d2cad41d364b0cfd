"""Boxes, such as faces, blurred beyond recognition: the method of the face-obfuscated ImageNet, as img2dataset applies it."""

import math
from collections.abc import Sequence

import cv2
import numpy as np

from ingest.header import Pixels
from ingest.outcomes import Ended, Outcome

MARGIN = 0.1  # of a box's longer side: added around it
SIGMA = 0.1  # of the longest side of all boxes
OVERHANG = 1.0  # widths or heights that a box may reach outside; detectors overshoot, but pixel coordinates in place of shares reach further

Box = tuple[float, float, float, float]


def checked_boxes(boxes: object) -> list[Box]:
    """[x0, y0, x1, y1] in shares of the upright width and height, cut to the picture.

    Raises:
        Ended: bad_boxes; a picture whose boxes cannot be used must not be stored as it is.
    """
    if not isinstance(boxes, Sequence | np.ndarray) or isinstance(boxes, str | bytes):
        raise Ended(Outcome.BAD_BOXES, f"a list of boxes is needed (empty when there is nothing to blur), found {boxes!r}")
    return [_checked(box) for box in boxes]


def _checked(box: object) -> Box:
    try:
        x0, y0, x1, y1 = (float(share) for share in box)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        raise Ended(Outcome.BAD_BOXES, f"not four numbers: {box!r}") from None
    if not all(-OVERHANG <= share <= 1 + OVERHANG for share in (x0, y0, x1, y1)):  # NaN is not either
        raise Ended(Outcome.BAD_BOXES, f"not in shares of width and height: {box!r}")
    cut = (max(x0, 0.0), max(y0, 0.0), min(x1, 1.0), min(y1, 1.0))
    if cut[0] >= cut[2] or cut[1] >= cut[3]:
        raise Ended(Outcome.BAD_BOXES, f"empty, reversed or outside: {box!r}")
    return cut


def blur(pixels: Pixels, boxes: list[Box]) -> Pixels:
    """One Gaussian for all boxes, mixed in through a mask that is blurred by the same: its edges are soft."""
    if not boxes:
        return pixels
    height, width = pixels.shape[:2]
    mask = np.zeros((height, width), np.float32)
    longest = 1
    for x0, y0, x1, y1 in boxes:
        left, top, right, bottom = int(x0 * width), int(y0 * height), int(x1 * width), int(y1 * height)
        side = max(right - left, bottom - top, 1)
        longest = max(longest, side)
        grown = MARGIN * side
        mask[max(0, int(top - grown)) : max(int(bottom + grown), top + 1), max(0, int(left - grown)) : max(int(right + grown), left + 1)] = 1
    kernel = max(3, 2 * math.ceil(SIGMA * longest) + 1)
    mask = cv2.GaussianBlur(mask, (kernel, kernel), 0)
    blurred = cv2.GaussianBlur(pixels, (kernel, kernel), 0)
    weight = mask if pixels.ndim == 2 else mask[..., None]
    return np.asarray(np.rint(pixels * (1 - weight) + blurred * weight), np.uint8)
