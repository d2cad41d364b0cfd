"""Decode a picture to RGB: simplejpeg for plain JPEGs, Pillow for everything else; what is damaged is an error, never a grey half."""

import io

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.core.errors import DataError

MAX_PIXELS = 64_000_000
_FORMATS = ("JPEG", "PNG", "WEBP")

Picture = npt.NDArray[np.uint8]


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Picture:
    """`uint8 [H, W, 3]`, turned upright by its EXIF orientation; transparency lies on white.

    Raises:
        DataError: not a JPEG, PNG or WebP, damaged, cut off, or of more than `max_pixels`.
    """
    if data[:2] == b"\xff\xd8" and data.find(b"Exif\0\0", 0, 65536) < 0:  # orientation is Pillow's business
        try:
            height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
            if colorspace in ("YCbCr", "Gray", "RGB") and height * width <= max_pixels:
                picture: Picture = simplejpeg.decode_jpeg(data, "RGB")
                return picture
        except ValueError:
            pass  # libjpeg warned: Pillow tells stray bytes, which are harmless, from a cut file
    return _by_pillow(data, max_pixels)


def _by_pillow(data: bytes, max_pixels: int) -> Picture:
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise DataError(f"picture of {image.width} x {image.height} pixels; the limit is {max_pixels}")
            upright = ImageOps.exif_transpose(image)
            if upright.has_transparency_data:
                paper = Image.new("RGBA", upright.size, "white")
                upright = Image.alpha_composite(paper, upright.convert("RGBA"))
            return np.array(upright.convert("RGB"))
    except UnidentifiedImageError:
        raise DataError("not a JPEG, PNG or WebP picture") from None
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(f"damaged picture ({error})") from error
