"""PNG, GIF, BMP and TIFF through PIL: header first, then 8-bit gray, RGB or CMYK on white."""

import io
import warnings

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from ingest.header import FULL, Header, Pixels, Scale, exif_orientation
from ingest.outcomes import Ended, Outcome
from ingest.webp import STRIP, on_white

FORMATS = ("PNG", "GIF", "BMP", "TIFF")  # with JPEG and WebP, the decoders a stranger's bytes may reach
PNG_END = b"IEND\xaeB`\x82"
MAX_CHUNKS = 10_000  # of a PNG; 20 MiB in chunks of 8 KiB are 2,560
MAX_RUN_LENGTH_PIXELS = 4_000_000  # PIL unpacks a run-length BMP in Python, at about a second for these
TILE_WIDTH, TILE_LENGTH = 322, 323  # TIFF tags


def read_header(body: bytes, max_pixels: int) -> Header:
    """Size, orientation and profile, with a `decode` for later."""
    image = _opened(body)
    width, height = image.size
    orientation, profile = 1, image.info.get("icc_profile")
    if image.format == "PNG":  # PIL turns a TIFF upright itself
        orientation = exif_orientation(_png_chunk(body, b"eXIf"))
    elif image.format == "TIFF":
        tile = _tag(image, TILE_WIDTH) * _tag(image, TILE_LENGTH)
        if tile > max_pixels:  # one tile is unpacked whole, however small the picture
            raise Ended(Outcome.TOO_LARGE, f"tiles of {tile} pixels")
    elif image.format == "BMP" and image.tile and image.tile[0][0] == "bmp_rle" and width * height > MAX_RUN_LENGTH_PIXELS:
        raise Ended(Outcome.TOO_LARGE, f"{width} x {height} pixels, run-length encoded")

    def decode(_: Scale = FULL) -> Pixels:
        try:
            pixels = _plain(image)
        except Exception as error:  # PIL's decoders raise what they like: OSError, SyntaxError, struct.error, IndexError, ...
            raise _undecodable(body, image.format, f"{type(error).__name__}: {error}") from None
        if pixels.shape[:2] != (height, width):
            raise Ended(Outcome.DECODE_FAILED, "another size than the header's")
        return pixels

    return Header(image.format or "", width, height, orientation, profile if isinstance(profile, bytes) else None, False, decode)


def _opened(body: bytes) -> ImageFile.ImageFile:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes, which have their own cap, and of odd metadata
            return Image.open(io.BytesIO(body), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise Ended(Outcome.TOO_LARGE, str(error)) from None
    except UnidentifiedImageError:
        start = body[:16].lstrip().lower()
        raise Ended(Outcome.NOT_AN_IMAGE, "empty" if not body else "a text or web page" if start[:1] == b"<" else f"starts with {body[:8]!r}") from None
    except Exception as error:  # a broken header: see decode
        raise Ended(Outcome.DECODE_FAILED, f"{type(error).__name__}: {error}") from None


def _plain(image: ImageFile.ImageFile) -> Pixels:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        covered = image.tile[0][1] if image.format == "GIF" and image.tile else None
        image.load()
    transparent = image.has_transparency_data
    if image.mode.startswith("I;16"):  # PIL's own conversion would clip to 255
        gray = ((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8)
        if isinstance(hole := image.info.get("transparency"), int):
            gray[np.asarray(image) == hole] = 255
        return gray
    if image.mode in ("I", "F"):
        raise ValueError("pixels of 32 bits, with no known white")
    mode = "RGBA" if transparent else "L" if image.mode in ("1", "L") else "CMYK" if image.mode == "CMYK" else "RGB"
    pixels = _converted(image, mode)
    return _only_covered(pixels, covered) if covered else pixels


def _converted(image: Image.Image, mode: str) -> Pixels:
    """In strips: PIL holds 4 bytes a pixel and would need as many again, twice, to convert and hand over a whole picture."""
    width, height = image.size
    channels = {"L": (), "CMYK": (4,)}.get(mode, (3,))
    pixels = np.empty((height, width, *channels), np.uint8)
    for top in range(0, height, STRIP):
        strip = np.asarray(image.crop((0, top, width, min(top + STRIP, height))).convert(mode))
        pixels[top : top + STRIP] = on_white(strip) if mode == "RGBA" else strip
    return pixels


def _only_covered(pixels: Pixels, box: tuple[int, int, int, int]) -> Pixels:
    """White where a GIF's first frame does not reach: PIL fills that with the palette's first colour."""
    left, top, right, bottom = box
    if (left, top, right, bottom) == (0, 0, pixels.shape[1], pixels.shape[0]):
        return pixels
    whole = np.full_like(pixels, 255)
    whole[top:bottom, left:right] = pixels[top:bottom, left:right]
    return whole


def _png_chunk(body: bytes, wanted: bytes) -> bytes:
    at = 8
    for _ in range(MAX_CHUNKS):
        length, name = int.from_bytes(body[at : at + 4], "big"), body[at + 4 : at + 8]
        if name == wanted:
            return body[at + 8 : at + 8 + length]
        at += 12 + length
        if at >= len(body):
            break
    return b""


def _tag(image: Image.Image, tag: int) -> int:
    value = getattr(image, "tag_v2", {}).get(tag, 0)
    return value if isinstance(value, int) else 0


def _undecodable(body: bytes, image_format: str | None, detail: str) -> Ended:
    """Truncated when the last bytes are missing, though the server sent what it announced."""
    cut = "truncated" in detail if image_format != "PNG" else PNG_END not in body[-64:]
    return Ended(Outcome.TRUNCATED if cut else Outcome.DECODE_FAILED, detail)
