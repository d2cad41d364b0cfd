"""From the bytes of a response to the bytes of a sample: bounds from the header before any decoding, then upright 8-bit sRGB in a JPEG."""

import threading
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from ingest import jpeg, other_formats, webp
from ingest.blur import blur, checked_boxes
from ingest.colour import is_srgb, to_gray, to_srgb
from ingest.header import FULL, Header, Pixels, check_bounds
from ingest.phash import phash
from ingest.resize import fit, plan, reduced_scale, resize
from ingest.store import StoreConfig

LARGE_PIXELS = 8_000_000  # pictures above this are decoded one at a time: a progressive JPEG takes up to 9 bytes a pixel

# EXIF orientation -> what makes it upright; 5 to 8 swap width and height
UPRIGHT: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda pixels: pixels,
    2: np.fliplr,
    3: lambda pixels: pixels[::-1, ::-1],
    4: np.flipud,
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).swapaxes(0, 1),
    8: np.rot90,
}


@dataclass(frozen=True)
class Prepared:
    """A picture as it is stored (JPEG) with its size, the size it came with (upright), and its perceptual hash."""

    jpeg: bytes
    width: int
    height: int
    original_width: int
    original_height: int
    phash: str


class Preparer:
    """Made once a worker; may be called from several threads: the decoders, filters and encoders let go of the interpreter lock."""

    def __init__(self, store: StoreConfig) -> None:
        self.store = store
        self.one_large = threading.Lock()
        cv2.setNumThreads(1)  # the engine has its own processes and threads
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # damaged pictures are outcomes, not lines on the terminal

    def __call__(self, body: bytes, boxes: object = None) -> Prepared:
        """`boxes` is used when the store has a blur_column.

        Raises:
            Ended: not an image, too large, too small, too long, truncated, not decodable, or with boxes that cannot be used.
        """
        header = read_header(body, self.store.max_pixels)
        check_bounds(header.width, header.height, self.store)
        hidden = checked_boxes(boxes) if self.store.blur_column is not None else []
        if header.width * header.height > LARGE_PIXELS:
            with self.one_large:
                return self._prepared(body, header, hidden)
        return self._prepared(body, header, hidden)

    def _prepared(self, body: bytes, header: Header, hidden: list[tuple[float, float, float, float]]) -> Prepared:
        width, height = header.upright_size
        made = plan(width, height, self.store)
        if made is None and not hidden and self.store.skip_reencode and header.bare and header.orientation == 1:
            gray = jpeg.check(body)
            if is_srgb(header.profile, gray=False) and is_srgb(header.profile, gray=True):
                return Prepared(body, width, height, width, height, phash(gray))
        resized, stored = (made.resized, made.stored) if made else ((width, height), (width, height))
        scale = reduced_scale(width, height, made, header.scales) if made and self.store.fast_resize else FULL
        as_stored = resized[::-1] if header.orientation >= 5 else resized
        pixels = resize(header.decode(scale), as_stored, enlarge=made is not None and made.enlarged, fast=self.store.fast_resize)
        pixels = to_srgb(UPRIGHT[header.orientation](pixels), header.profile)
        pixels = np.ascontiguousarray(fit(blur(pixels, hidden), stored))
        return Prepared(jpeg.encode(pixels, self.store.encode_quality), *stored, width, height, phash(to_gray(pixels)))


def read_header(body: bytes, max_pixels: int) -> Header:
    """By the first bytes, whatever the server called it.

    Raises:
        Ended: not an image, or its header is broken.
    """
    if body.startswith(b"\xff\xd8\xff"):
        return jpeg.read_header(body)
    if body[:4] == b"RIFF" and body[8:12] == b"WEBP":
        return webp.read_header(body)
    return other_formats.read_header(body, max_pixels)
