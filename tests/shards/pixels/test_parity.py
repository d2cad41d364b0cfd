"""Crop, resize, flip and normalisation equal torchvision on Pillow, pixel for pixel, in both modes and with or without the compiled helpers."""

import io
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import functional

from pipeline.app.bench.corpus import photograph
from pipeline.app.bench.photo_shards import POWER
from shards.pixels import native
from shards.pixels.decode import Picture
from shards.pixels.randaugment import RandAugment, drawn_operations
from shards.pixels.transforms import MEAN, STD, Draws, Mode, PretrainTransform, crop_box, resized
from shards.random_stream import TRANSFORM, item_keys, uniforms
from training.batch import normalised

from ..conftest import picture

CROP_DRAWS = 40
needs_resize = pytest.mark.skipif(
    native.resize is None and os.environ.get("CI") != "true", reason="shards.pixels._resize is not compiled: install gcc, then `pip install -e .`"
)


def jpeg(seed: int, height: int, width: int) -> bytes:
    """A gradient with a block and some noise."""
    buffer = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 50, (height, width, 3), dtype=np.uint8)
    Image.fromarray(picture(seed, height, width) + noise).save(buffer, "JPEG", quality=92, progressive=seed % 3 == 2)
    return buffer.getvalue()


def by_torchvision(data: bytes, draws: Draws, resolution: int, sharpness: str = "clipped") -> Image.Image:
    """The same box, resize, flip and operations, by the libraries the original used."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    top, left, height, width = crop_box(image.height, image.width, (0.2, 1.0), draws[:CROP_DRAWS])
    image = functional.resized_crop(image, top, left, height, width, [resolution, resolution], functional.InterpolationMode.BICUBIC)
    if draws[CROP_DRAWS] < 0.5:
        image = functional.hflip(image)
    augment = RandAugment(sharpness="original" if sharpness == "original" else "clipped", exact=True)
    return Image.fromarray(augment.apply(np.asarray(image), drawn_operations(draws[CROP_DRAWS + 1 :])))


@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "libraries"])
@pytest.mark.parametrize("sharpness", ["clipped", "original"])
def test_parity_mode_equals_torchvision_and_pillow_pixel_for_pixel(sharpness: str, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiled:
        monkeypatch.setattr(native, "jpeg", None)
        monkeypatch.setattr(native, "resize", None)
    transform = PretrainTransform(48, mode="parity", sharpness="original" if sharpness == "original" else "clipped")
    changed = 0
    for seed, draws in enumerate(uniforms(item_keys(3, 0, np.arange(60)), TRANSFORM, transform.num_draws)):
        data = jpeg(seed, 70 + 5 * seed, 300 - 3 * seed)
        expected = by_torchvision(data, draws, 48, sharpness)
        assert (transform(data, draws) == np.asarray(expected)).all()
        changed += int(by_torchvision(data, np.full_like(draws, 0.6), 48) != expected)
    assert changed > 50


@pytest.mark.parametrize("mode", ["fast", "parity"])
def test_pictures_up_to_twice_the_resolution_are_alike_in_both_modes_before_randaugment(mode: Mode) -> None:
    transform = PretrainTransform(64, randaugment=False, mode=mode)
    for seed, draws in enumerate(uniforms(item_keys(4, 0, np.arange(30)), TRANSFORM, transform.num_draws)):
        data = jpeg(seed, 100, 127)
        unchanged = np.concatenate([draws[: CROP_DRAWS + 1], np.full(6, 0.9)])  # 0.9: no operation is applied
        assert (transform(data, draws) == np.asarray(by_torchvision(data, unchanged, 64))).all()


def test_normalisation_equals_torchvision_s() -> None:
    image = Image.fromarray(picture(1, 32, 32))
    expected = functional.normalize(functional.to_tensor(image), MEAN, STD)
    ours = normalised(torch.from_numpy(np.array(image))[None].permute(0, 3, 1, 2))
    assert torch.equal(ours[0], expected)


def test_pictures_halved_by_their_dct_are_on_average_half_a_level_from_the_exact_ones() -> None:
    """The one approximation of fast mode before RandAugment, on photo-like pictures taken whole, so that no edge of a crop moves."""
    fast, parity = (PretrainTransform(256, (1.0, 1.0), randaugment=False, mode=mode) for mode in ("fast", "parity"))
    apart = []
    for draws in uniforms(item_keys(5, 0, np.arange(8)), TRANSFORM, fast.num_draws):
        buffer = io.BytesIO()
        photograph(np.random.default_rng(len(apart)), 900, 700, POWER).save(buffer, "JPEG", quality=95)
        apart.append(np.abs(fast(buffer.getvalue(), draws).astype(int) - parity(buffer.getvalue(), draws)).mean())
    assert 0.3 < np.mean(apart) < 0.7  # of 255


@needs_resize
@pytest.mark.parametrize("vectors", [True, False])
@settings(max_examples=300, deadline=None)
@given(
    height=st.integers(1, 200), width=st.integers(1, 200), to_height=st.integers(1, 120), to_width=st.integers(1, 120),
    seed=st.integers(0, 5), mirrored=st.booleans(),
)  # fmt: skip
def test_the_compiled_resize_equals_pillow_s_in_every_bit(
    height: int, width: int, to_height: int, to_width: int, seed: int, mirrored: bool, vectors: bool
) -> None:
    image: Picture = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    out = np.empty((to_height, to_width, 3), np.uint8)
    native.resize.bicubic(image, out, mirrored, vectors)
    expected = np.asarray(Image.fromarray(image).resize((to_width, to_height), Image.Resampling.BICUBIC))
    assert (out == (expected[:, ::-1] if mirrored else expected)).all()


@needs_resize
def test_the_compiled_helpers_refuse_what_is_not_a_picture() -> None:
    image, out = picture(1, 8, 8), np.empty((4, 4, 3), np.uint8)
    for wrong in (image[..., :1].copy(), image.astype(np.float32), np.empty((0, 4, 3), np.uint8)):
        with pytest.raises(ValueError):
            native.resize.bicubic(wrong, out, False)
    with pytest.raises((ValueError, BufferError)):
        native.resize.bicubic(image[:, ::2], out, False)
    with pytest.raises(ValueError, match="outside"):
        native.jpeg.decode(jpeg(0, 20, 30), np.empty((10, 10, 3), np.uint8), 11, 0, 1)
    for wrong in (np.empty((10, 10), np.uint8), np.empty((10, 10, 3), np.float32)):
        with pytest.raises(ValueError, match="expected"):
            native.jpeg.decode(jpeg(0, 20, 30), wrong, 0, 0, 1)


def test_a_picture_that_is_a_window_of_another_is_resized_alike() -> None:
    image = picture(2, 60, 80)
    window = image[5:50, 7:70]
    assert (resized(window, 16) == resized(window.copy(), 16)).all()
