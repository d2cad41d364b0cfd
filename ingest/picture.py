"""From the bytes of a response to the bytes of a sample: bounds from the header before any decoding, upright 8-bit RGB, img2dataset's Resizer."""

import io
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ingest.outcomes import Ended, Outcome

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # decoders a stranger's bytes may reach; JPEG's opens a phone's MPO too
ORIENTATION = 0x0112  # EXIF tag; 1 is upright
MODES_AS_THEY_ARE = {"JPEG": ("RGB", "L"), "MPO": ("RGB", "L"), "PNG": ("RGB",), "WEBP": ("RGB",)}
LAST_BYTES = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}


@dataclass(frozen=True)
class Prepared:
    """A picture as it is stored (JPEG) with its size, and the size it came with (upright)."""

    jpeg: bytes
    width: int
    height: int
    original_width: int
    original_height: int


def prepare(body: bytes, resizer: Any, min_size: int, max_pixels: int) -> Prepared:
    """Check, turn upright and resize; `resizer` is img2dataset's (stream -> bytes, width, height, original width, original height, error).

    Raises:
        Ended: not an image, too large, too small, truncated or not decodable.
    """
    image = _opened(body)
    width, height = image.size
    if width * height > max_pixels:
        raise Ended(Outcome.TOO_LARGE, f"{width} x {height} pixels")
    if min(width, height) < min_size:
        raise Ended(Outcome.TOO_SMALL, f"{width} x {height} pixels")
    stream = io.BytesIO(body if _is_plain(image) else _plain_bitmap(image, body))
    jpeg, width, height, original_width, original_height, error = resizer(stream)
    if error is not None:
        raise _undecodable(body, image.format, error)
    return Prepared(jpeg, width, height, original_width, original_height)


def _opened(body: bytes) -> Image.Image:
    """The header alone is read here."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our cap comes next
            return Image.open(io.BytesIO(body), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise Ended(Outcome.TOO_LARGE, str(error)) from error
    except UnidentifiedImageError:
        start = body[:16].lstrip().lower()
        raise Ended(Outcome.NOT_AN_IMAGE, "empty" if not body else "a text or web page" if start[:1] == b"<" else f"starts with {body[:8]!r}") from None
    except (OSError, ValueError, OverflowError) as error:
        raise Ended(Outcome.DECODE_FAILED, f"{type(error).__name__}: {error}") from error


def _is_plain(image: Image.Image) -> bool:
    """Whether OpenCV, which knows nothing of EXIF, palettes, CMYK or 16 bits, reads it right."""
    animated = getattr(image, "n_frames", 1) > 1 and image.format != "MPO"
    return image.mode in MODES_AS_THEY_ARE.get(image.format or "", ()) and not animated and _orientation(image) == 1


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # a broken EXIF block says nothing; the pixels may be fine
        return 1


def _plain_bitmap(image: Image.Image, body: bytes) -> bytes:
    """First frame, upright, 8-bit RGB on white, as BMP: lossless and cheap to read back."""
    try:
        image = ImageOps.exif_transpose(image) if _orientation(image) != 1 else image
        if image.mode.startswith("I"):  # 16 bits a pixel; PIL's own conversion would clip to 255
            image = Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image)
        bitmap = io.BytesIO()
        image.convert("RGB").save(bitmap, "BMP")
    except Exception as error:
        raise _undecodable(body, image.format, f"{type(error).__name__}: {error}") from error
    return bitmap.getvalue()


def _undecodable(body: bytes, image_format: str | None, detail: str) -> Ended:
    """Truncated when the format's last bytes are missing, though the server sent what it announced."""
    last = LAST_BYTES.get(image_format or "")
    cut = last is not None and last not in body[-64:]
    return Ended(Outcome.TRUNCATED if cut else Outcome.DECODE_FAILED, detail)
