"""Affine warps of uint8 pictures, bilinear, with grey from outside: fast by OpenCV 4, or exactly as OpenCV 5 computes them."""

import cv2
import numpy as np
import numpy.typing as npt

Picture = npt.NDArray[np.uint8]
Matrix = npt.NDArray[np.float64]  # [2, 3]: where a pixel (x, y, 1) goes

FILL = (128, 128, 128)  # what comes in from outside the picture


def warped(image: Picture, matrix: Matrix, exact: bool) -> Picture:
    """The picture moved by the matrix, in its own size."""
    across, down = matrix[:, 2]
    if (matrix[:, :2] == np.eye(2)).all() and across.is_integer() and down.is_integer():
        return _shifted(image, int(across), int(down))
    if exact:
        return _as_opencv_5(image, matrix)
    height, width = image.shape[:2]
    moved: Picture = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderValue=FILL)
    return moved


def one_after_the_other(first: Matrix, second: Matrix) -> Matrix:
    """The matrix of both moves at once: one interpolation instead of two."""
    return second[:, :2] @ first + np.pad(second[:, 2:], ((0, 0), (2, 0)))


def _shifted(image: Picture, across: int, down: int) -> Picture:
    moved = np.full_like(image, FILL[0])
    height, width = image.shape[:2]
    if abs(across) < width and abs(down) < height:
        to = (slice(max(down, 0), height + min(down, 0)), slice(max(across, 0), width + min(across, 0)))
        moved[to] = image[max(-down, 0) : height + min(-down, 0), max(-across, 0) : width + min(-across, 0)]
    return moved


def _as_opencv_5(image: Picture, matrix: Matrix) -> Picture:
    """In float32 with fused multiply-adds, like OpenCV 5, which made the golden pictures; OpenCV 4 rounds places to 1/32 pixel."""
    height, width = image.shape[:2]
    inverse = cv2.invertAffineTransform(matrix).astype(np.float32)
    x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)
    from_x, from_y = (_fused(x[None, :], row[0], (y * row[1] + row[2])[:, None]) for row in inverse)
    left, top = np.floor(from_x), np.floor(from_y)
    right_share, lower_share = (from_x - left)[..., None], (from_y - top)[..., None]
    surrounded = np.full((height + 4, width + 4, 3), FILL, np.float32)
    surrounded[2:-2, 2:-2] = image
    column, row = np.clip(left, -2, width).astype(np.int64) + 2, np.clip(top, -2, height).astype(np.int64) + 2
    upper, lower = (_fused(right_share, surrounded[line, column + 1] - surrounded[line, column], surrounded[line, column]) for line in (row, row + 1))
    moved: Picture = np.rint(_fused(lower_share, lower - upper, upper)).astype(np.uint8)
    return moved


def _fused(factor: npt.NDArray[np.float32], other: npt.NDArray[np.float32], addend: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """factor x other + addend, rounded once: float64 holds the product of two float32 exactly."""
    product: npt.NDArray[np.float64] = np.multiply(factor, other, dtype=np.float64)
    return (product + addend).astype(np.float32)
