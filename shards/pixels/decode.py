"""Decode pictures to RGB, or only a crop of them; what is damaged is an error, never a grey half.

Plain JPEGs go through libjpeg-turbo (our own binding where it was built, else simplejpeg), everything else through Pillow; all give the same pixels.
"""

import io
import warnings
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, UnidentifiedImageError

from pipeline.core.errors import DataError
from shards.pixels import native

MAX_PIXELS = 64_000_000
_FORMATS = ("JPEG", "PNG", "WEBP")
_ORIENTATION = 0x0112  # the EXIF tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_END_OF_IMAGE = b"\xff\xd9"
warnings.filterwarnings("ignore", module=r"PIL\.")  # of odd EXIF and of sizes, which have their own cap; once, since a filter for a while is not thread-safe

Picture = npt.NDArray[np.uint8]


class Source(Protocol):
    """A picture of known size, decoded as far as it is asked for."""

    @property
    def height(self) -> int: ...

    @property
    def width(self) -> int: ...

    def crop(self, top: int, left: int, height: int, width: int, reduce: int = 1) -> Picture:
        """`uint8 [height, width, 3]`, or where that saves work both sides divided by `reduce` (2, 4 or 8) and rounded up.

        With `reduce`, `top` and `left` are multiples of it, and `height` and `width` too unless they end at the picture's edge.

        Raises DataError: damaged or cut off.
        """
        ...


def open_picture(data: bytes, max_pixels: int = MAX_PIXELS) -> Source:
    """A JPEG, PNG or WebP, turned upright by its EXIF orientation; transparency lies on white.

    Raises:
        DataError: another format, a damaged header (of a PNG or WebP: anything damaged), or more than `max_pixels`.
    """
    if data[:2] == b"\xff\xd8":
        try:
            height, width, plain, exif = _jpeg_header(data)
        except ValueError:
            plain = False  # Pillow has the word on what is damaged
        if plain:
            _refuse_large(width, height, max_pixels)
            if not exif or _is_upright(data):
                return _PlainJpeg(data, height, width)
    return _Decoded(_by_pillow(data, max_pixels))


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Picture:
    """The whole picture, `uint8 [H, W, 3]`, as `open_picture` opens it.

    Raises:
        DataError: not a JPEG, PNG or WebP, damaged, cut off, or of more than `max_pixels`.
    """
    source = open_picture(data, max_pixels)
    return source.crop(0, 0, source.height, source.width)


@dataclass(frozen=True)
class _Decoded:
    """A picture that had to be decoded whole."""

    pixels: Picture

    @property
    def height(self) -> int:
        return len(self.pixels)

    @property
    def width(self) -> int:
        return len(self.pixels[0])

    def crop(self, top: int, left: int, height: int, width: int, reduce: int = 1) -> Picture:  # noqa: ARG002  # decoding is done: nothing to save
        return self.pixels[top : top + height, left : left + width]


@dataclass(frozen=True)
class _PlainJpeg:
    """A JPEG that needs no turning and no colour profile: the libraries decode it alike, bit for bit."""

    data: bytes
    height: int
    width: int

    def crop(self, top: int, left: int, height: int, width: int, reduce: int = 1) -> Picture:
        box = (top // reduce, left // reduce, -(-height // reduce), -(-width // reduce))
        try:
            if native.jpeg is not None and self._pays(height, width, reduce):
                picture: Picture = np.empty((*box[2:], 3), np.uint8)
                native.jpeg.decode(self.data, picture, box[0], box[1], reduce)
                return picture
            return _cut(simplejpeg.decode_jpeg(self.data, "RGB", min_height=-(-self.height // reduce), min_width=-(-self.width // reduce)), box)
        except ValueError:  # libjpeg warned: Pillow tells stray bytes, which are harmless, from a cut file
            return _cut(_by_pillow(self.data, self.height * self.width), (top, left, height, width))

    def _pays(self, height: int, width: int, reduce: int) -> bool:
        """Whether to decode the crop only. Not where it is the whole: simplejpeg's own libjpeg-turbo is newer than most systems'.

        Nor where the file does not end as a JPEG does: the crop's decoder stops below the crop and would not notice that the file is cut off.
        """
        return (reduce > 1 or height < self.height or width < self.width) and self.data.endswith(_END_OF_IMAGE)


def _cut(picture: Picture, box: tuple[int, int, int, int]) -> Picture:
    top, left, height, width = box
    return picture[top : top + height, left : left + width]


def _jpeg_header(data: bytes) -> tuple[int, int, bool, bool]:
    """Height, width, whether the colours are ones that all libraries decode alike, and whether there is EXIF; ValueError for a damaged header."""
    if native.jpeg is not None:
        found: tuple[int, int, bool, bool] = native.jpeg.header(data)
        return found
    height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    return height, width, colorspace in ("YCbCr", "Gray", "RGB"), data.find(b"Exif\0\0", 0, 65536) >= 0


def _is_upright(data: bytes) -> bool:
    """Whether the EXIF asks for no turning."""
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            return _turn(image) is None
    except Exception:
        return False  # Pillow decodes it, or says what is wrong


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What makes it upright. An EXIF that cannot be read asks for nothing, as in browsers."""
    try:
        return _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:
        return None


def _refuse_large(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise DataError(f"picture of {width} x {height} pixels; the limit is {max_pixels}")


def _by_pillow(data: bytes, max_pixels: int) -> Picture:
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            _refuse_large(image.width, image.height, max_pixels)
            turn = _turn(image)
            upright = image if turn is None else image.transpose(turn)
            if upright.has_transparency_data:
                paper = Image.new("RGBA", upright.size, "white")
                upright = Image.alpha_composite(paper, upright.convert("RGBA"))
            return np.array(upright.convert("RGB"))
    except UnidentifiedImageError:
        raise DataError("not a JPEG, PNG or WebP picture") from None
    except (DataError, MemoryError):  # too large; and what the machine is short of does not speak against the picture
        raise
    except Exception as error:  # Pillow's decoders raise what they like: OSError, SyntaxError, TypeError, AssertionError, ...
        raise DataError(f"damaged picture ({type(error).__name__}: {error})") from error
