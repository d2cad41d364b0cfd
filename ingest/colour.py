"""Colours as everyone expects them: ICC profiles and CMYK become sRGB."""

import io
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageCms

from ingest.header import Pixels

MAX_PROFILE_BYTES = 4 * 2**20  # the largest printers' profiles have 3 MB
MODES = {2: ("L", "GRAY"), 3: ("RGB", "RGB "), 4: ("CMYK", "CMYK")}  # by number of channels (2: the dimensions of gray): PIL's name, ICC's
INVISIBLE = 1  # levels of 255: a profile that moves nothing further is sRGB, whatever it calls itself


def is_srgb(profile: bytes | None, gray: bool) -> bool:
    """Whether the pixels can stay as they are."""
    return profile is None or _transform(profile, "L" if gray else "RGB") is None


def to_srgb(pixels: Pixels, profile: bytes | None) -> Pixels:
    """8-bit gray or RGB in sRGB; a broken profile, or one of another kind of pixels, is as none."""
    mode, _ = MODES[pixels.shape[2] if pixels.ndim == 3 else 2]
    transform = _transform(profile, mode) if profile is not None else None
    if transform is None:
        return _from_cmyk(pixels) if mode == "CMYK" else pixels
    height, width = pixels.shape[:2]
    converted = ImageCms.applyTransform(Image.frombuffer(mode, (width, height), np.ascontiguousarray(pixels), "raw", mode, 0, 1), transform)
    assert converted is not None
    rgb = np.asarray(converted)
    return np.ascontiguousarray(rgb[..., 0]) if mode == "L" else rgb


def to_gray(pixels: Pixels) -> Pixels:
    return pixels if pixels.ndim == 2 else np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY))


def _from_cmyk(inks: Pixels) -> Pixels:
    """Without a profile: light left by the ink times light left by the black, as PIL and browsers do."""
    light = 255 - inks
    return np.dstack([cv2.multiply(light[..., channel], light[..., 3], scale=1 / 255) for channel in range(3)])


@lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """None when there is nothing to do: sRGB, broken, or of another colour space."""
    if len(profile) > MAX_PROFILE_BYTES:
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space != dict(MODES.values())[mode]:
            return None
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
        return None if mode != "CMYK" and _moves_nothing(transform, mode) else transform
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


def _moves_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    steps = np.arange(0, 256, 15, dtype=np.uint8)
    levels: Any = steps if mode == "L" else np.stack(np.meshgrid(steps, steps, steps), -1)
    probe = Image.fromarray(levels.reshape(1, -1) if mode == "L" else levels.reshape(1, -1, 3))
    moved = ImageCms.applyTransform(probe, transform)
    assert moved is not None
    return bool(np.abs(np.asarray(moved).astype(int) - np.asarray(probe.convert("RGB"))).max() <= INVISIBLE)
