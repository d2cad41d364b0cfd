"""Damaged and hostile bytes of every format end in an outcome, in bounded memory and without a crash."""

import io
import random
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ingest.outcomes import Ended, Outcome
from ingest.picture import Preparer
from ingest.store import StoreConfig

PREPARE = Preparer(StoreConfig(max_pixels=2_000_000, image_size=32, max_aspect_ratio=100))
KINDS: list[tuple[str, dict[str, Any]]] = [
    *[("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {}), ("WEBP", {"lossless": True}), ("GIF", {}), ("BMP", {}), ("TIFF", {})],
    *[
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "jpeg"}),
        ("WEBP", {"animated": True}),
        ("GIF", {"animated": True}),
        ("PNG", {"animated": True}),
    ],
]


def valid(kind: str, options: dict[str, Any]) -> bytes:
    options = dict(options)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8).repeat(2, 0))
    if options.pop("animated", False):
        options |= {"save_all": True, "append_images": [image.transpose(Image.Transpose.ROTATE_180)]}
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    image.save(buffer, kind, **options, **({} if kind in ("GIF", "BMP") else {"exif": exif.tobytes()}))
    return buffer.getvalue()


def mutated(body: bytes, rng: random.Random) -> bytes:
    """Bytes changed (mostly in the header), removed, doubled, or the end cut off."""
    damaged = bytearray(body)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        at = min(int(len(damaged) * rng.random() ** rng.choice((1, 4))), len(damaged) - 1)
        match rng.randrange(6):
            case 0 | 1:
                damaged[at] = rng.randrange(256)
            case 2:
                damaged[at : at + 4] = rng.choice((b"\xff\xff\xff\xff", bytes(4), b"\x7f\xff\xff\xff", b"\x80\0\0\0"))[: len(damaged[at : at + 4])]
            case 3:
                del damaged[at : at + rng.randrange(1, 30)]
            case 4:
                damaged[at:at] = damaged[at : at + rng.randrange(1, 60)]
            case _:
                del damaged[max(at, 20) :]
        if not damaged:
            return b""
    return bytes(damaged)


def outcome(body: bytes) -> Outcome:
    try:
        prepared = PREPARE(body)
    except Ended as end:
        return end.outcome
    image = Image.open(io.BytesIO(prepared.jpeg))
    assert image.format == "JPEG"
    assert image.size == (prepared.width, prepared.height)
    return Outcome.SUCCESS


def fuzz(kind: str, options: dict[str, Any], times: int) -> None:
    rng, body = random.Random(times), valid(kind, options)
    assert outcome(body) is Outcome.SUCCESS
    seen = {outcome(mutated(body, rng)) for _ in range(times)}
    assert len(seen) >= 2  # the damage does reach the decoder


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_mutated_pictures_end_in_an_outcome(kind: str, options: dict[str, Any]) -> None:
    fuzz(kind, options, 60)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_thousands_of_mutated_pictures_end_in_an_outcome(kind: str, options: dict[str, Any]) -> None:
    fuzz(kind, options, 3000)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_picture_cut_anywhere_is_never_stored(kind: str) -> None:
    body = valid(kind, {})
    for share in (0.3, 0.6, 0.9):
        assert outcome(body[: int(len(body) * share)]) in (Outcome.TRUNCATED, Outcome.DECODE_FAILED)


def test_a_progressive_jpeg_of_thousands_of_scans_is_refused() -> None:
    body = valid("JPEG", {"progressive": True})
    scan = body[body.rindex(b"\xff\xda") : -2]
    assert outcome(body[:-2] + scan * 1000 + body[-2:]) is Outcome.DECODE_FAILED


BOMBS = """
import io, struct, sys, zlib
from PIL import Image
from ingest.store import StoreConfig
from ingest.outcomes import Ended
from ingest.picture import Preparer

def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

def png(width, height, *chunks, colour=2):
    row = zlib.compressobj(9)
    data = b"".join(row.compress(bytes(1 + width * {0: 1, 2: 3, 6: 4}[colour])) for _ in range(height)) + row.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    return b"\\x89PNG\\r\\n\\x1a\\n" + b"".join(chunk(*each) for each in [(b"IHDR", header), *chunks, (b"IDAT", data), (b"IEND", b"")])

def webp_canvas(side):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "WEBP", save_all=True, append_images=[Image.new("RGB", (8, 8), 9)])
    body = bytearray(buffer.getvalue())
    body[24:30] = (side - 1).to_bytes(3, "little") * 2
    return bytes(body)

def tiff_tile(side):
    tags = [(256, 64), (257, 64), (258, 8), (259, 5), (262, 1), (277, 1), (322, side), (323, side), (324, 8), (325, 0)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + entries + bytes(4)

zipped = zlib.compress(bytes(200_000_000), 9)
bodies = {
    "pixels": png(20_000, 4_000),
    "just under the cap": png(8_000, 7_999, colour=6),
    "text": png(8, 8, (b"zTXt", b"a\\0\\0" + zipped)),
    "international text": png(8, 8, (b"iTXt", b"a\\0\\1\\0\\0\\0" + zipped)),
    "profile": png(8, 8, (b"iCCP", b"a\\0\\0" + zipped)),
    "canvas": webp_canvas(16_384),
    "canvas under the cap": webp_canvas(7_999),
    "tile": tiff_tile(60_000),
    "gif": b"GIF89a\\xff\\xff\\xff\\xff\\0\\0\\0\\x2c\\0\\0\\0\\0\\xff\\xff\\xff\\xff\\0\\x02\\x02\\x4c\\x01\\0\\x3b",
}
del zipped
prepare = Preparer(StoreConfig(max_pixels=64_000_000))

def peak():  # not ru_maxrss, which a child inherits from the process that started it
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

before = peak()
for name, body in bodies.items():
    try:
        prepare(body)
        print(name, "stored")
    except Ended as end:
        print(name, end.outcome)
print("MiB", peak() // 1024, "of which before", before // 1024)
"""


@pytest.mark.slow
def test_bombs_of_every_kind_stay_below_a_gigabyte() -> None:
    done = subprocess.run([sys.executable, "-c", BOMBS], capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=250, check=True)
    *_, last = done.stdout.splitlines()
    assert int(last.split()[1]) < 1000, done.stdout
    refused = {line.rsplit(" ", 1)[0]: line.rsplit(" ", 1)[1] for line in done.stdout.splitlines()}
    assert {refused[name] for name in ("pixels", "canvas", "gif", "tile")} == {"too_large"}
    assert refused["just under the cap"] == "stored"


def test_a_tiny_png_cannot_hide_a_huge_text() -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    body = valid("PNG", {})
    bomb = body[:33] + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(20_000_000))) + body[33:]
    assert outcome(bomb) in (Outcome.DECODE_FAILED, Outcome.SUCCESS)


def test_a_profile_segment_without_a_profile_ends_in_an_outcome() -> None:
    body = valid("JPEG", {})
    for rest, allowed in ((b"", {Outcome.SUCCESS}), (b"\1\1", {Outcome.SUCCESS, Outcome.DECODE_FAILED}), (b"\1\1x", {Outcome.SUCCESS})):
        data = b"ICC_PROFILE\0" + rest
        assert outcome(body[:2] + b"\xff\xe2" + struct.pack(">H", 2 + len(data)) + data + body[2:]) in allowed
