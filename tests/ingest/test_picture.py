"""Bodies become upright 8-bit JPEGs, or end in the outcome that says what they were."""

import io
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ingest.outcomes import Ended, Outcome
from ingest.picture import Prepared, Preparer
from ingest.store import StoreConfig

MAX_PIXELS = 1_000_000


def prepared(body: bytes, boxes: Any = None, **settings: Any) -> Prepared:
    return Preparer(StoreConfig.model_validate({"max_pixels": MAX_PIXELS} | settings))(body, boxes)


def outcome_of(body: bytes, **options: Any) -> Outcome:
    with pytest.raises(Ended) as caught:
        prepared(body, **options)
    return caught.value.outcome


def encoded(pixels: Any, kind: str, **options: Any) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels_of(picture: Prepared) -> np.ndarray[Any, np.dtype[np.int64]]:
    image = Image.open(io.BytesIO(picture.jpeg))
    assert image.format == "JPEG"
    assert image.size == (picture.width, picture.height)
    return np.asarray(image.convert("RGB")).astype(np.int64)


def ramp(width: int = 60, height: int = 40) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Red grows to the right, green downwards: every turn of it looks different. [height, width, 3]"""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[..., 0] = np.linspace(0, 255, width)
    picture[..., 1] = np.linspace(0, 255, height)[:, None]
    return picture


def test_a_jpeg_that_fits_keeps_its_bytes() -> None:
    body = encoded(ramp(), "JPEG", quality=80)
    assert prepared(body).jpeg == body
    assert prepared(body, skip_reencode=False).jpeg != body


def test_the_short_side_is_made_smaller_and_never_larger() -> None:
    large = prepared(encoded(ramp(900, 600), "JPEG"), image_size=128)
    assert (large.width, large.height, large.original_width, large.original_height) == (192, 128, 900, 600)
    small = prepared(encoded(ramp(), "PNG"), image_size=128)
    assert (small.width, small.height) == (60, 40)
    assert prepared(encoded(ramp(), "PNG"), image_size=128, upscale=True).height == 128


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    upright = Image.fromarray(ramp())
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transposition (PIL's number) that a reader of this tag has to undo
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = prepared(encoded(stored, "JPEG", quality=98, exif=exif.tobytes()))
    assert (picture.width, picture.height) == (60, 40)
    assert np.abs(pixels_of(picture) - ramp()).mean() < 4


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_other_formats_become_jpeg(kind: str) -> None:
    assert np.abs(pixels_of(prepared(encoded(ramp(), kind))) - ramp()).mean() < 12


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    gray = np.linspace(0, 65535, 60 * 40).reshape(40, 60).astype(np.uint16)
    assert np.abs(pixels_of(prepared(encoded(gray, "PNG")))[..., 0] - gray / 257).mean() < 2


def test_cmyk_and_gray_and_palette_keep_their_look() -> None:
    for image in (Image.fromarray(ramp()).convert("CMYK"), Image.fromarray(ramp()).convert("L")):
        expected = np.asarray(image.convert("RGB")).astype(np.int64)
        assert np.abs(pixels_of(prepared(encoded(image, "JPEG", quality=98))) - expected).mean() < 4
    palette = Image.fromarray(ramp()).quantize(64)
    assert np.abs(pixels_of(prepared(encoded(palette, "PNG"))) - np.asarray(palette.convert("RGB")).astype(np.int64)).mean() < 6


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_what_is_transparent_lies_on_white(kind: str) -> None:
    body = encoded(np.dstack([ramp(), np.zeros((40, 60), np.uint8)]), kind)
    assert pixels_of(prepared(body)).min() >= 250


def test_what_is_not_a_picture_is_said_to_be_none() -> None:
    for body in (b"<html><body>gone</body></html>", b"", b"root:x:0:0", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.7", os.urandom(1000)):
        assert outcome_of(body) is Outcome.NOT_AN_IMAGE


def test_a_picture_cut_off_is_truncated_in_every_format() -> None:
    for kind in ("JPEG", "PNG"):
        body = encoded(np.random.default_rng(0).integers(0, 255, (80, 80, 3), np.uint8), kind)
        assert outcome_of(body[: len(body) // 2]) is Outcome.TRUNCATED


def test_damaged_pixels_are_a_failed_decode() -> None:
    body = bytearray(encoded(np.random.default_rng(0).integers(0, 255, (80, 80, 3), np.uint8), "PNG"))
    body[200:400] = bytes(200)
    assert outcome_of(bytes(body)) is Outcome.DECODE_FAILED


def test_a_bomb_is_refused_by_its_header(png_header: Any) -> None:
    assert outcome_of(png_header(30_000, 30_000)) is Outcome.TOO_LARGE
    assert outcome_of(png_header(2_000, 1_000)) is Outcome.TOO_LARGE
    assert outcome_of(png_header(10_000, 8_999), max_pixels=64_000_000) is Outcome.TOO_LARGE


def test_a_picture_below_the_smallest_size_is_too_small() -> None:
    assert outcome_of(encoded(ramp(), "JPEG"), min_size=41) is Outcome.TOO_SMALL
    assert prepared(encoded(ramp(), "JPEG"), min_size=40).height == 40


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.fromarray(ramp()), Image.fromarray(255 - ramp())]
    body = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert np.abs(pixels_of(prepared(body)) - ramp()).mean() < 6


def test_a_picture_longer_than_the_aspect_ratio_allows_is_too_long() -> None:
    assert outcome_of(encoded(ramp(301, 100), "PNG"), max_aspect_ratio=3) is Outcome.TOO_LONG
    assert outcome_of(encoded(ramp(100, 301), "JPEG"), max_aspect_ratio=3) is Outcome.TOO_LONG
    assert prepared(encoded(ramp(300, 100), "JPEG"), max_aspect_ratio=3).width == 300


def test_bounds_hold_in_every_format_before_anything_is_decoded() -> None:
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"):
        body = encoded(ramp(300, 200), kind)
        header_alone = body if kind == "TIFF" else body[: 1000 if kind in ("JPEG", "GIF", "BMP") else 60]  # a TIFF's may lie at its end
        if kind == "WEBP":
            header_alone = body[:4] + (len(header_alone) - 8).to_bytes(4, "little") + header_alone[8:]
        assert outcome_of(header_alone, max_pixels=50_000) is Outcome.TOO_LARGE
        assert outcome_of(header_alone, min_size=201) is Outcome.TOO_SMALL


def test_what_lies_behind_a_jpeg_or_beside_it_is_not_stored() -> None:
    body = encoded(ramp(), "JPEG")
    assert prepared(body).jpeg == body
    assert b"PK" not in prepared(body + b"PK\3\4 an archive").jpeg
    frames = [Image.fromarray(ramp()), Image.fromarray(255 - ramp())]
    both = encoded(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert prepared(both).jpeg.count(b"\xff\xd8\xff") == 1


def test_a_kept_jpeg_is_read_to_its_end_all_the_same() -> None:
    body = encoded(np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8), "JPEG")
    assert outcome_of(body[: len(body) * 3 // 4] + body[-2:], resize_mode="no") is Outcome.DECODE_FAILED
    assert outcome_of(body[: len(body) * 3 // 4], resize_mode="no") is Outcome.TRUNCATED


def test_pictures_are_prepared_in_several_threads_as_in_one() -> None:
    bodies = [encoded(ramp(200 + step, 150), kind) for step in range(8) for kind in ("JPEG", "PNG", "WEBP")]
    preparer = Preparer(StoreConfig(image_size=100))
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(preparer, bodies * 3)) == [preparer(body) for body in bodies] * 3
