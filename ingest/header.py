"""What a picture's header says, before anything is decoded; which bounds it must keep."""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ingest.outcomes import Ended, Outcome
from ingest.store import StoreConfig

Pixels = np.ndarray[Any, np.dtype[np.uint8]]  # [height, width] gray, [height, width, 3] RGB, [height, width, 4] CMYK with 255 for full ink
Scale = int  # 2 is half the width and height
FULL: Scale = 1
ORIENTATION = 0x0112  # EXIF tag; 1 is upright
MAX_EXIF_ENTRIES = 1_000


@dataclass(frozen=True)
class Header:
    """Size, EXIF orientation and ICC profile as they are stored, and how to get the pixels.

    `bare` is a JPEG that holds one ordinary picture and nothing behind it.
    """

    format: str
    width: int
    height: int
    orientation: int
    profile: bytes | None
    bare: bool
    decode: Callable[[Scale], Pixels]
    scales: tuple[Scale, ...] = (FULL,)

    @property
    def upright_size(self) -> tuple[int, int]:
        """(width, height)"""
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)


def check_bounds(width: int, height: int, store: StoreConfig) -> None:
    """Raises Ended with too_large, too_small or too_long."""
    found = f"{width} x {height} pixels"
    if width * height > store.max_pixels:
        raise Ended(Outcome.TOO_LARGE, found)
    if min(width, height) < max(store.min_size, 1):
        raise Ended(Outcome.TOO_SMALL, found)
    if store.max_aspect_ratio is not None and max(width, height) > store.max_aspect_ratio * min(width, height):
        raise Ended(Outcome.TOO_LONG, found)


def exif_orientation(exif: bytes) -> int:
    """1 to 8; 1 when the block says nothing or is broken: the pixels may be fine."""
    try:
        order = {b"II": "<", b"MM": ">"}[exif[:2]]
        (start,) = struct.unpack_from(order + "I", exif, 4)
        (entries,) = struct.unpack_from(order + "H", exif, start)
        for at in range(start + 2, start + 2 + 12 * min(entries, MAX_EXIF_ENTRIES), 12):
            tag, kind = struct.unpack_from(order + "HH", exif, at)
            if tag == ORIENTATION:
                (value,) = struct.unpack_from(order + ("I" if kind == 4 else "H"), exif, at + 8)
                return value if 1 <= value <= 8 else 1
    except (KeyError, struct.error):
        pass
    return 1
