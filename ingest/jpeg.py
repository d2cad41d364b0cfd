"""JPEG: what its segments say, and its pixels at a scale that the decoder gives for little."""

from collections.abc import Iterator

import numpy as np
import simplejpeg

from ingest.header import FULL, Header, Pixels, Scale, exif_orientation
from ingest.outcomes import Ended, Outcome

SOI, EOI, SOS = b"\xff\xd8", b"\xff\xd9", 0xDA
APP1, APP2, PROGRESSIVE = 0xE1, 0xE2, (0xC2, 0xCA)
ICC, EXIF, SECOND_PICTURE = b"ICC_PROFILE\0", b"Exif\0\0", b"MPF\0"
MAX_SEGMENTS = 1_000  # a profile has at most 255; a body of 20 MiB could have five million empty ones
MAX_SCANS = 64  # each scan of a progressive JPEG walks over the whole picture, even one of ten bytes; encoders write 10 to 20
COLORSPACES = {"Gray": "GRAY", "GRAY": "GRAY", "CMYK": "CMYK", "YCCK": "CMYK"}  # all others become RGB
REFUSALS = (ValueError, KeyError, MemoryError)  # KeyError: a colour space or a subsampling that simplejpeg has no name for
HARMLESS = ("before marker 0xd9", "Invalid SOS parameters", "unknown JFIF revision", "Unknown Adobe color transform", "bad ICC marker")  # decoded all the same


def read_header(body: bytes) -> Header:
    """Size, orientation and profile, with a `decode` for later."""
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(body, strict=False)
    except REFUSALS as error:
        raise undecodable(body, f"{type(error).__name__}: {error}") from None
    orientation, profile, single = 1, {}, True
    for marker, data in _segments(body):
        if marker in PROGRESSIVE and body.count(bytes((0xFF, SOS))) > MAX_SCANS:
            raise Ended(Outcome.DECODE_FAILED, f"more than {MAX_SCANS} scans")
        if marker == APP1 and data.startswith(EXIF):
            orientation = exif_orientation(data[len(EXIF) :])
        elif marker == APP2 and data.startswith(ICC) and len(data) > len(ICC) + 2:
            profile[data[len(ICC)]] = data[len(ICC) + 2 :]  # number of the part, how many there are, part
        elif marker == APP2 and data.startswith(SECOND_PICTURE):
            single = False
    bare = single and colorspace not in ("CMYK", "YCCK") and body.endswith(EOI)  # nothing hidden behind the picture is stored
    joined = b"".join(profile[part] for part in sorted(profile)) or None

    def decode(scale: Scale = FULL) -> Pixels:
        pixels = _decoded(body, COLORSPACES.get(colorspace, "RGB"), -(-height // scale), -(-width // scale))
        if pixels.shape[2] == 4:
            return ~pixels  # Adobe's CMYK counts from full ink, and so do all readers
        return np.asarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)

    return Header("JPEG", width, height, orientation, joined, bare, decode, scales=(1, 2, 4, 8))


def check(body: bytes) -> Pixels:
    """Gray pixels at an eighth to a half: every byte is read, at the least cost, so that a damaged picture is found."""
    height, width, _, _ = simplejpeg.decode_jpeg_header(body, strict=False)
    return np.asarray(_decoded(body, "GRAY", min(height, 128), min(width, 128))[..., 0])


def encode(pixels: Pixels, quality: int) -> bytes:
    """As OpenCV's writer: chroma at half size, gray stays gray."""
    if pixels.ndim == 2:
        return bytes(simplejpeg.encode_jpeg(pixels[..., None], quality, "GRAY", "Gray"))
    return bytes(simplejpeg.encode_jpeg(pixels, quality, "RGB", "420"))


def undecodable(body: bytes, detail: str) -> Ended:
    """Truncated when the end marker is missing, though the server sent what it announced."""
    return Ended(Outcome.DECODE_FAILED if EOI in body[-64:] else Outcome.TRUNCATED, detail)


def _decoded(body: bytes, colorspace: str, min_height: int, min_width: int) -> Pixels:
    """[height, width, channels]"""
    try:
        return np.asarray(simplejpeg.decode_jpeg(body, colorspace, min_height=min_height, min_width=min_width))
    except REFUSALS as error:
        if not any(words in str(error) for words in HARMLESS):
            raise undecodable(body, str(error)) from None
    try:
        return np.asarray(simplejpeg.decode_jpeg(body, colorspace, min_height=min_height, min_width=min_width, strict=False))
    except REFUSALS as error:
        raise undecodable(body, str(error)) from None


def _segments(body: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and data of each segment before the first scan."""
    at = len(SOI)
    for _ in range(MAX_SEGMENTS):
        at = body.find(b"\xff", at)
        if at < 0 or at + 4 > len(body):
            return
        marker = body[at + 1]
        if marker == SOS:
            return
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD9:  # no length follows
            at += 1 if marker == 0xFF else 2
            continue
        length = int.from_bytes(body[at + 2 : at + 4], "big")
        yield marker, body[at + 4 : at + 2 + length]
        at += 2 + max(length, 2)
