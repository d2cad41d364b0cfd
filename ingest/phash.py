"""The perceptual hash of a picture: 64 bits that a re-encode, a resize or a loss of colour hardly moves (imagehash's phash, bit for bit)."""

from typing import Any

import numpy as np
from PIL import Image

from ingest.header import Pixels

SIDE, KEPT = 32, 8  # pixels a side before the cosine transform, coefficients a side after it
REDUCING_GAP = 4.0  # times SIDE that a cheap box mean may leave for Lanczos; larger pictures cost no more
DCT = 2 * np.cos(np.pi * np.arange(KEPT)[:, None] * (2 * np.arange(SIDE) + 1) / (2 * SIDE))  # type II, unnormalised. [KEPT, SIDE]


def phash(gray: Pixels) -> str:
    """16 hexadecimal digits; the first bit is the mean's, rows of falling frequency follow."""
    small: Any = np.asarray(Image.fromarray(gray).resize((SIDE, SIDE), Image.Resampling.LANCZOS, reducing_gap=REDUCING_GAP)).astype(np.float64)
    low = DCT @ small @ DCT.T
    return np.packbits(low > np.median(low)).tobytes().hex()


def distance(a: str, b: str) -> int:
    """Bits that differ, 0 to 64."""
    return (int(a, 16) ^ int(b, 16)).bit_count()
