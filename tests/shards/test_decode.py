"""Decoding: what Pillow decodes, to the same pixels; anything damaged is an error."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from pipeline.core.errors import DataError
from shards.decode import decode_image

from .conftest import picture


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
