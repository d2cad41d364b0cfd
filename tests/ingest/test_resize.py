"""Sizes are img2dataset's to the pixel; the fast way is close to OpenCV's area, the other way is it."""

import io
import os
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from ingest.outcomes import Ended, Outcome
from ingest.picture import Prepared, Preparer
from ingest.resize import plan, resize
from ingest.store import StoreConfig

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
MODES = ["no", "keep_ratio", "keep_ratio_largest", "center_crop", "border"]


def natural(seed: int, width: int, height: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Texture whose amplitude falls with frequency as in photographs, with edges and text on it."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1
    layers = [np.fft.irfft2(frequency**-1.2 * np.exp(2j * np.pi * rng.random(frequency.shape)), s=(height, width)) for _ in range(4)]
    light, *colours = (layer / layer.std() for layer in layers)
    image = Image.fromarray(np.clip(np.dstack([light + 0.4 * colour for colour in colours]) * 45 + 128, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(6):
        x, y, side = int(rng.integers(width)), int(rng.integers(height)), int(rng.integers(10, 80))
        colour = tuple(int(level) for level in rng.integers(0, 256, 3))
        draw.rectangle((x, y, x + side, y + side // 2), fill=colour)
        draw.text((y % width, x % height), "a man riding a wave", fill=colour[::-1])
    return np.asarray(image)


def encoded(pixels: Any, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def prepared(body: bytes, **settings: Any) -> Prepared:
    return Preparer(StoreConfig.model_validate(settings))(body)


def img2dataset(body: bytes, store: StoreConfig) -> tuple[Any, ...]:
    from img2dataset.resizer import Resizer

    resizer = Resizer(store.image_size, store.resize_mode, not store.upscale, encode_quality=store.encode_quality, skip_reencode=store.skip_reencode)
    result: tuple[Any, ...] = resizer(io.BytesIO(body))
    return result


def pixels_of(jpeg: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB")).astype(np.int64)


@pytest.mark.parametrize("upscale", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_sizes_and_pixels_are_those_of_img2dataset(mode: str, upscale: bool) -> None:
    store = StoreConfig.model_validate({"resize_mode": mode, "upscale": upscale, "image_size": 64, "encode_quality": 100, "fast_resize": False})
    for size in ((201, 133), (133, 201), (64, 64), (65, 64), (63, 200), (40, 30), (31, 47), (500, 3), (128, 128)):
        for pixels, largest in ((natural(1, *size)[..., 0], 3), (natural(1, *size), 12)):  # two builds of libjpeg-turbo, which round chroma differently
            body = encoded(pixels)
            ours, theirs = Preparer(store)(body), img2dataset(body, store)
            assert (ours.width, ours.height, ours.original_width, ours.original_height) == theirs[1:5]
            away = np.abs(pixels_of(ours.jpeg) - pixels_of(theirs[0]))
            assert away.max() <= largest
            assert away.mean() <= 2


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 3000), st.sampled_from(MODES), st.booleans(), st.sampled_from([64, 255, 256, 384]))
def test_planned_sizes_follow_the_definition(width: int, height: int, mode: str, upscale: bool, side: int) -> None:
    store = StoreConfig.model_validate({"resize_mode": mode, "upscale": upscale, "image_size": side, "max_pixels": 10**10})
    governing = max(width, height) if mode in ("border", "keep_ratio_largest") else min(width, height)
    try:
        made = plan(width, height, store)
    except Ended as end:
        assert end.outcome is Outcome.TOO_LARGE  # noqa: PT017 - either way is allowed, this one only for what no JPEG can hold
        assert max(width, height) * side / governing > 65_000
        return
    if mode == "no" or (governing <= side and not upscale):
        assert made is None
    else:
        assert made is not None
        assert made.resized == tuple(max(1, round(length * (side / governing))) for length in (width, height))
        assert made.stored == ((side, side) if mode in ("center_crop", "border") else made.resized)


def test_a_sliver_that_would_grow_beyond_any_jpeg_is_too_large() -> None:
    with pytest.raises(Ended, match="too_large"):
        prepared(encoded(np.zeros((2, 6_000, 3), np.uint8)), upscale=True)
    with pytest.raises(Ended, match="too_large"):
        prepared(encoded(np.zeros((1, 66_000, 3), np.uint8)), resize_mode="no")


def psnr(a: Any, b: Any) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(np.float64) - b) ** 2)))


@pytest.mark.parametrize(("shrink", "floor"), [(1.1, 41), (1.5, 39), (2.0, 37), (2.4, 35), (2.9, 34)])
def test_three_taps_and_a_bilinear_are_close_to_the_area(shrink: float, floor: float) -> None:
    pixels = natural(2, round(320 * shrink), round(256 * shrink))
    assert psnr(resize(pixels, (320, 256), False, fast=True), cv2.resize(pixels, (320, 256), interpolation=cv2.INTER_AREA)) > floor


@pytest.mark.parametrize("subsampling", [0, 2])
@pytest.mark.parametrize("size", [(400, 300), (860, 645), (1030, 770), (900, 1200), (1280, 853), (2200, 1500)])
def test_the_fast_way_adds_no_more_error_than_storing_as_jpeg(size: tuple[int, int], subsampling: int) -> None:
    body = encoded(natural(3, *size), "JPEG", quality=90, subsampling=subsampling)
    fast, whole = (pixels_of(prepared(body, fast_resize=fast).jpeg) for fast in (True, False))
    assert fast.shape == whole.shape
    exact = cv2.resize(np.asarray(Image.open(io.BytesIO(body))), whole.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert psnr(fast, exact) > psnr(whole, exact) - 3.1  # two equal errors are 3 dB more than one


def test_a_border_is_white_and_a_crop_is_the_middle() -> None:
    middle_red = np.zeros((60, 180, 3), np.uint8)
    middle_red[:, 60:120, 0] = 255
    crop = pixels_of(prepared(encoded(middle_red), resize_mode="center_crop", image_size=30).jpeg)
    assert crop.shape == (30, 30, 3)
    assert crop[..., 0].mean() > 245
    border = pixels_of(prepared(encoded(middle_red), resize_mode="border", image_size=90).jpeg)
    assert border[:28].min() > 235
    assert border[-28:].min() > 235
