"""WebP: its chunks are read here, so that an animation costs one frame and not three canvases."""

import struct
from collections.abc import Iterator

import cv2
import numpy as np

from ingest.header import FULL, Header, Pixels, Scale, exif_orientation
from ingest.outcomes import Ended, Outcome

ALPHA_FLAG = 0x10
MAX_CHUNKS = 1_000
STRIP = 256  # rows flattened at a time: the arithmetic needs 16 bits


def read_header(body: bytes) -> Header:
    """Size of the canvas, orientation and profile, with a `decode` for later."""
    if int.from_bytes(body[4:8], "little") + 8 > len(body) + 1:  # some writers leave out the last padding byte
        raise Ended(Outcome.TRUNCATED, "fewer bytes than the RIFF header says")
    chunks: dict[bytes, bytes] = {}
    for name, data in _chunks(body[12:]):
        chunks.setdefault(name, data)
    try:
        canvas = _canvas(chunks[b"VP8X"]) if b"VP8X" in chunks else _bitstream_size(chunks)
        still, offset = (_first_frame(chunks[b"ANMF"], canvas), _offset(chunks[b"ANMF"])) if b"ANMF" in chunks else (body, (0, 0))
    except (KeyError, struct.error, IndexError) as error:
        raise Ended(Outcome.DECODE_FAILED, f"no WebP picture inside: {type(error).__name__} {error}") from None
    width, height = canvas

    def decode(_: Scale = FULL) -> Pixels:
        pixels = _decoded(still)
        if pixels.shape[:2] == (height, width):
            return pixels
        if pixels.shape[0] + offset[1] > height or pixels.shape[1] + offset[0] > width:
            raise Ended(Outcome.DECODE_FAILED, "a frame larger than its canvas")
        whole = np.full((height, width, 3), 255, np.uint8)  # a first frame may cover a part only; the rest is transparent
        whole[offset[1] : offset[1] + pixels.shape[0], offset[0] : offset[0] + pixels.shape[1]] = pixels
        return whole

    return Header("WEBP", width, height, exif_orientation(chunks.get(b"EXIF", b"").removeprefix(b"Exif\0\0")), chunks.get(b"ICCP"), False, decode)


def on_white(rgba: Pixels) -> Pixels:
    """[height, width, 4] with alpha that is not premultiplied -> [height, width, 3]"""
    rgb = np.empty((*rgba.shape[:2], 3), np.uint8)
    for row in range(0, len(rgba), STRIP):
        strip = rgba[row : row + STRIP].astype(np.uint16)
        alpha = strip[..., 3:]
        rgb[row : row + STRIP] = (strip[..., :3] * alpha + (255 - alpha) * 255 + 127) // 255
    return rgb


def _decoded(still: bytes) -> Pixels:
    try:
        pixels = cv2.imdecode(np.frombuffer(still, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise Ended(Outcome.DECODE_FAILED, str(error)) from None
    if pixels is None:
        raise Ended(Outcome.DECODE_FAILED, "damaged WebP data")
    return (
        on_white(cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGBA, dst=pixels))
        if pixels.shape[2] == 4
        else np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=pixels))
    )


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    for _ in range(MAX_CHUNKS):
        if at + 8 > len(data):
            return
        name, size = struct.unpack_from("<4sI", data, at)
        yield name, data[at + 8 : at + 8 + size]
        at += 8 + size + size % 2


def _canvas(extended: bytes) -> tuple[int, int]:
    return _whole(extended, 4) + 1, _whole(extended, 7) + 1


def _whole(data: bytes, at: int) -> int:
    low, high = struct.unpack_from("<HB", data, at)
    return int(low | high << 16)


def _bitstream_size(chunks: dict[bytes, bytes]) -> tuple[int, int]:
    """(width, height) in the first bytes of a lossless or a lossy picture."""
    if b"VP8L" in chunks:
        (bits,) = struct.unpack_from("<I", chunks[b"VP8L"], 1)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", chunks[b"VP8 "], 6)
    return width & 0x3FFF, height & 0x3FFF


def _offset(frame: bytes) -> tuple[int, int]:
    return 2 * _whole(frame, 0), 2 * _whole(frame, 3)


def _first_frame(frame: bytes, canvas: tuple[int, int]) -> bytes:
    """An animation's first frame as a WebP file of its own."""
    parts = dict(_chunks(frame[16:]))
    width, height = _bitstream_size(parts)
    if not (0 < width <= canvas[0] and 0 < height <= canvas[1]):
        raise Ended(Outcome.DECODE_FAILED, "a frame that is empty or larger than its canvas")
    extended = bytes((ALPHA_FLAG if b"ALPH" in parts else 0, 0, 0, 0)) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    kept = [(b"VP8X", extended)] + [(name, parts[name]) for name in (b"ALPH", b"VP8 ", b"VP8L") if name in parts]
    if b"VP8L" in parts:
        kept = kept[-1:]  # says itself whether it has alpha
    data = b"".join(struct.pack("<4sI", name, len(part)) + part + bytes(len(part) % 2) for name, part in kept)
    return b"RIFF" + struct.pack("<I", 4 + len(data)) + b"WEBP" + data
