"""The hash is imagehash's, hardly moves with what people do to pictures, and tells different ones apart."""

import io
from typing import Any

import imagehash
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ingest.phash import distance, phash
from ingest.picture import Preparer
from ingest.store import StoreConfig

NEAR = 6  # bits; a few coefficients always lie at the median


def smooth(seed: int, size: tuple[int, int] = (340, 256)) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def gray(image: Image.Image) -> Any:
    return np.asarray(image.convert("L"))


def jpeg(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


@pytest.mark.parametrize("size", [(32, 32), (40, 90), (100, 80)])
def test_small_pictures_have_the_bits_of_imagehash(size: tuple[int, int]) -> None:
    for seed in range(20):
        assert phash(gray(smooth(seed, size))) == str(imagehash.phash(smooth(seed, size)))


def test_large_pictures_have_them_but_for_those_at_the_median() -> None:
    away = [distance(phash(gray(smooth(seed))), str(imagehash.phash(smooth(seed)))) for seed in range(50)]
    assert max(away) <= 2
    assert np.mean(away) < 0.5


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32))
def test_reencoding_halving_and_graying_hardly_move_it(seed: int) -> None:
    original = smooth(seed)
    first = phash(gray(original))
    again = Image.open(io.BytesIO(jpeg(original, 75)))
    half = original.resize((170, 128), Image.Resampling.BOX)
    assert max(distance(first, phash(gray(other))) for other in (again, half, original.convert("L").convert("RGB"))) <= NEAR


def test_different_pictures_are_far_apart() -> None:
    hashes = [phash(gray(smooth(seed))) for seed in range(60)]
    assert min(distance(a, b) for place, a in enumerate(hashes) for b in hashes[:place]) > 10


def test_a_prepared_picture_carries_the_hash_of_what_is_stored() -> None:
    for store in (StoreConfig(), StoreConfig(resize_mode="no"), StoreConfig(image_size=128)):
        for size in ((340, 256), (200, 150), (1000, 800)):
            prepared = Preparer(store)(jpeg(smooth(5, size), 90))
            assert len(prepared.phash) == 16
            assert distance(prepared.phash, str(imagehash.phash(Image.open(io.BytesIO(prepared.jpeg))))) <= 4


def test_one_colour_has_a_hash() -> None:
    assert len(phash(np.full((50, 50), 255, np.uint8))) == 16
