"""Decoding: what Pillow decodes, to the same pixels, whole or only a crop; anything damaged is an error."""

import io
import logging
import os
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from pipeline.core.errors import DataError
from shards.pixels import native
from shards.pixels.decode import decode_image, open_picture

from ..conftest import picture

needs_jpeg = pytest.mark.skipif(
    native.jpeg is None and os.environ.get("CI") != "true", reason="shards.pixels._jpeg is not compiled: install libjpeg62-turbo-dev, then `pip install -e .`"
)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpegs_decode_as_pillow_decodes_them(mode: str) -> None:
    data = encoded(Image.fromarray(picture(5, 37, 53)).convert(mode), "JPEG", quality=80)
    assert (decode_image(data) == np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))).all()


def test_pictures_are_turned_upright_and_transparency_lies_on_white() -> None:
    image = Image.fromarray(picture(5, 20, 30))
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_image(encoded(image, "JPEG", exif=exif)).shape == (30, 20, 3)
    assert decode_image(encoded(image, "JPEG", exif=exif, comment=b"x" * 2000)).shape == (30, 20, 3)
    image.putalpha(0)
    for data in (encoded(image, "PNG"), encoded(image, "WEBP", lossless=True)):
        assert (decode_image(data) == 255).all()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: b"<html>404</html>",
        lambda data: data[:100],
        lambda data: data[:2] + bytes(300),
    ],
    ids=["half", "empty", "page", "header", "zeros"],
)
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_damaged_pictures_are_errors(form: str, damage: Callable[[bytes], bytes]) -> None:
    generator = np.random.default_rng(0)
    data = encoded(Image.fromarray(generator.integers(0, 255, (40, 40, 3), dtype=np.uint8)), form)
    with pytest.raises(DataError):
        decode_image(damage(data))


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks)


WITHOUT_ITS_PALETTE = png((b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 3, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(20))), (b"IEND", b""))
CUT_IN_ITS_PIXELS = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000032000000280802000080dea8bd3b000017a349444154789c01981767e8015e81c17a4d2936d436c8366121e48e4dfbd88896"
)


@pytest.mark.parametrize("data", [WITHOUT_ITS_PALETTE, CUT_IN_ITS_PIXELS], ids=["AssertionError", "TypeError"])
def test_a_picture_is_damaged_whatever_pillow_raises(data: bytes) -> None:
    with pytest.raises(DataError, match=r"^damaged picture \([^\n]*\)$"):
        decode_image(data)


def test_what_pillow_warns_of_stays_off_the_terminal() -> None:
    """In a process of its own, as pytest has filters of its own."""
    exif = Image.Exif()
    exif[0x010F] = "a camera with a long name"
    odd = encoded(Image.fromarray(picture(5, 20, 30)), "JPEG", exif=exif)
    odd = odd.replace(b"Exif\0\0MM\0*\0\0\0\x08\0\x01", b"Exif\0\0MM\0*\0\0\0\x08\0\x09")
    large = png((b"IHDR", struct.pack(">IIBBBBB", 10_000, 10_000, 8, 0, 0, 0, 0)), (b"IDAT", b""))
    script = (
        "from pipeline.core.errors import DataError; from shards.pixels.decode import decode_image\n"
        f"print(decode_image({odd!r}).shape)\ntry:\n    decode_image({large!r})\nexcept DataError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-W", "default", "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "(20, 30, 3)\npicture of 10000 x 10000 pixels; the limit is 64000000\n"
    assert done.stderr == ""


def test_a_decompression_bomb_and_a_foreign_format_are_refused() -> None:
    with pytest.raises(DataError, match="the limit is 100"):
        decode_image(encoded(Image.new("RGB", (20, 20)), "PNG"), max_pixels=100)
    with pytest.raises(DataError, match="the limit is 100"):
        decode_image(encoded(Image.new("RGB", (20, 20)), "JPEG"), max_pixels=100)
    with pytest.raises(DataError, match="not a JPEG, PNG or WebP"):
        decode_image(encoded(Image.new("RGB", (20, 20)), "TIFF"))


def test_stray_bytes_before_a_marker_are_harmless() -> None:
    data = encoded(Image.fromarray(picture(5, 20, 30)), "JPEG")
    assert (decode_image(data[:-2] + b"\x00\x00stray" + data[-2:]) == decode_image(data)).all()


@st.composite
def jpegs(draw: st.DrawFn) -> bytes:
    """JPEGs of all subsamplings; those that Pillow writes also progressive, with restart markers or optimised tables."""
    height, width = draw(st.integers(1, 90)), draw(st.integers(1, 90))
    noise = np.random.default_rng(draw(st.integers(0, 9))).integers(0, 60, (height, width, 3), dtype=np.uint8)
    image, quality = picture(draw(st.integers(0, 9)), height + 4, width + 4)[:height, :width] // 2 + noise, draw(st.sampled_from([30, 75, 95]))
    if draw(st.booleans()):
        subsampling = draw(st.sampled_from(["444", "422", "420", "440", "411", "Gray"]))
        pixels, space = (image[..., :1].copy(), "GRAY") if subsampling == "Gray" else (image, "RGB")
        return bytes(simplejpeg.encode_jpeg(pixels, quality=quality, colorspace=space, colorsubsampling=subsampling))
    options = {"progressive": draw(st.booleans()), "optimize": draw(st.booleans()), "restart_marker_blocks": draw(st.sampled_from([0, 1, 3]))}
    mode = draw(st.sampled_from(["RGB", "L"]))
    return encoded(Image.fromarray(image).convert(mode), "JPEG", quality=quality, subsampling=draw(st.integers(0, 2)), **options)


@st.composite
def places(draw: st.DrawFn, size: int, step: int) -> tuple[int, int]:
    """Start and length along one side, in multiples of `step` or up to the end."""
    start = draw(st.integers(0, (size - 1) // step)) * step
    return start, min(draw(st.integers(1, -(-(size - start) // step))) * step, size - start)


@needs_jpeg
@settings(max_examples=600, deadline=None)
@given(data=jpegs(), reduce=st.sampled_from([1, 1, 2, 4, 8]), draws=st.data())
def test_a_crop_equals_the_crop_of_the_whole_picture_in_every_pixel(data: bytes, reduce: int, draws: st.DataObject) -> None:
    source = open_picture(data)
    assume(reduce == 1 or max(source.height, source.width) >= 16)  # simplejpeg is asked by size, and cannot tell 1/4 of a smaller one from 1/8
    top, height = draws.draw(places(source.height, reduce))
    left, width = draws.draw(places(source.width, reduce))
    whole = simplejpeg.decode_jpeg(data, "RGB", min_height=-(-source.height // reduce), min_width=-(-source.width // reduce))
    expected = whole[top // reduce : -(-(top + height) // reduce), left // reduce : -(-(left + width) // reduce)]
    crop = source.crop(top, left, height, width, reduce)
    assert crop.shape == expected.shape
    assert (crop == expected).all()
    if reduce == 1:
        assert (whole == np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))).all()


@pytest.mark.parametrize("reduce", [1, 2, 4, 8])
def test_without_the_compiled_decoder_the_pixels_are_the_same(reduce: int, monkeypatch: pytest.MonkeyPatch) -> None:
    crops = []
    for data in (encoded(Image.fromarray(picture(seed, 97, 131)), "JPEG", quality=80, progressive=seed % 2 == 1) for seed in range(4)):
        crops.append(open_picture(data).crop(16, 24, 40, 64, reduce))
        monkeypatch.setattr(native, "jpeg", None)
        assert (open_picture(data).crop(16, 24, 40, 64, reduce) == crops[-1]).all()
        monkeypatch.undo()
    assert any((crop != crops[0]).any() for crop in crops)


def test_what_is_not_compiled_is_told_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    native.tell_what_is_missing.cache_clear()
    monkeypatch.setattr(native, "jpeg", None)
    with caplog.at_level(logging.WARNING):
        native.tell_what_is_missing()
        native.tell_what_is_missing()
    native.tell_what_is_missing.cache_clear()
    assert [("libjpeg62-turbo-dev" in record.message, "decoding only the crop" in record.message) for record in caplog.records] == [(True, True)]


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_pillow_turns_them(form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "a camera", orientation
    data = encoded(Image.fromarray(picture(5, 20, 30)), form, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert (decode_image(data) == np.asarray(upright)).all()


def test_exif_that_nobody_can_read_asks_for_nothing() -> None:
    """Pillow's own turning raises struct.error or TypeError for some of these, which would end a training run."""
    exif = Image.Exif()
    exif[0x010F], exif[0x0112], exif[0x8769] = "a camera", 3, {0x9000: b"0230"}
    data = encoded(Image.fromarray(picture(5, 20, 30)), "JPEG", exif=exif)
    plain, start, end = decode_image(encoded(Image.fromarray(picture(5, 20, 30)), "JPEG")), data.index(b"Exif") + 6, data.index(b"\xff\xdb")
    generator = np.random.default_rng(0)
    turned = 0
    for _ in range(400):
        damaged = bytearray(data)
        for place in generator.integers(start, end, 3):
            damaged[place] = generator.integers(256)
        with warnings.catch_warnings(action="ignore"):  # Pillow's, about the EXIF
            found = decode_image(bytes(damaged))
        turned += int((found == np.rot90(plain, 2)).all()) if found.shape == plain.shape else 0
        assert sorted(found.shape) == sorted(plain.shape)
    assert 50 < turned < 400


def test_a_cut_file_is_damaged_even_where_the_crop_lies_before_the_cut() -> None:
    data = encoded(Image.fromarray(picture(5, 200, 300)), "JPEG")
    with pytest.raises(DataError, match="damaged"):
        open_picture(data[: len(data) * 9 // 10]).crop(0, 0, 20, 20)


@needs_jpeg
def test_2000_damaged_jpegs_are_pictures_or_errors_and_nothing_leaks() -> None:
    """In a process of its own, so that a crash would be seen; the process prints what it met."""
    script = Path(__file__).with_name("damaged_jpegs.py")
    environment = {**os.environ, "PYTHONPATH": str(script.parents[3])}
    done = subprocess.run([sys.executable, script, "2000"], capture_output=True, text=True, timeout=250, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    met = dict(line.split() for line in done.stdout.splitlines())
    assert int(met["pictures"]) + int(met["errors"]) == 2000
    assert int(met["errors"]) > 300
    assert int(met["pictures"]) > 100
    assert int(met["leaked_kB"]) < 10_000
