"""Boxes are blurred as img2dataset does; boxes that cannot be used keep the picture out."""

import io
import math
import os
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ingest.blur import blur, checked_boxes
from ingest.outcomes import Ended, Outcome
from ingest.picture import Preparer
from ingest.store import StoreConfig

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
BOXES = [[0.1, 0.2, 0.4, 0.6], [0.7, 0.5, 0.9, 0.95]]


def noise(height: int = 150, width: int = 200) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png(pixels: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", **options)
    return buffer.getvalue()


def test_the_effect_is_that_of_img2dataset() -> None:
    from img2dataset.blurrer import BoundingBoxBlurrer

    theirs = BoundingBoxBlurrer()(noise(), BOXES).astype(int)
    difference = np.abs(blur(noise(), checked_boxes(BOXES)).astype(int) - theirs)
    assert difference.max() <= 2  # theirs cuts off what ours rounds, and blurs in floats


def test_what_is_inside_is_gone_and_what_is_far_is_untouched() -> None:
    blurred = blur(noise(), checked_boxes(BOXES))
    assert blurred[45:75, 30:70].std() < 0.4 * noise()[45:75, 30:70].std()
    assert np.array_equal(blurred[:10, 150:], noise()[:10, 150:])
    assert np.array_equal(blur(noise(), []), noise())
    assert blur(noise()[..., 0], checked_boxes(BOXES)).shape == (150, 200)


@pytest.mark.parametrize(
    "boxes",
    [
        None,
        "face",
        3,
        {"x": 1},
        [[0.1, 0.2, 0.3]],
        [0.1, 0.2, 0.3, 0.4],
        [None],
        [[0.1, 0.2, math.nan, 0.4]],
        [[0.1, 0.2, math.inf, 0.4]],
        [[0.4, 0.2, 0.1, 0.6]],
        [[0.1, 0.6, 0.4, 0.6]],
        [[1.1, 0.2, 1.4, 0.6]],
        [[10, 20, 110, 120]],
        [["a", "b", "c", "d"]],
        [BOXES[0], [0, 0, 0, 0]],
    ],
)
def test_boxes_that_cannot_be_used_keep_the_picture_out(boxes: object) -> None:
    with pytest.raises(Ended) as caught:
        Preparer(StoreConfig(blur_column="faces"))(png(noise()), boxes)
    assert caught.value.outcome is Outcome.BAD_BOXES


def test_boxes_that_reach_a_little_outside_are_cut() -> None:
    assert checked_boxes([[-0.1, 0.5, 0.5, 1.2]]) == [(0.0, 0.5, 0.5, 1.0)]
    assert checked_boxes(np.array([[0.0, 0.0, 1.0, 1.0]])) == [(0.0, 0.0, 1.0, 1.0)]


def test_boxes_are_those_of_the_upright_picture_and_survive_resizing() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    body = png(np.rot90(noise(600, 800)), exif=exif)  # stored on its side
    prepared = Preparer(StoreConfig(blur_column="faces", image_size=300))(body, [[0.0, 0.0, 0.25, 1.0]])
    columns = np.asarray(Image.open(io.BytesIO(prepared.jpeg)).convert("L")).std(0)
    assert (prepared.width, prepared.height) == (400, 300)
    assert columns[:90].mean() < 0.4 * columns[200:].mean()


def test_a_jpeg_that_would_keep_its_bytes_is_blurred_and_encoded_again() -> None:
    buffer = io.BytesIO()
    Image.fromarray(noise()).save(buffer, "JPEG")
    preparer = Preparer(StoreConfig(blur_column="faces"))
    assert preparer(buffer.getvalue(), []).jpeg == buffer.getvalue()
    assert preparer(buffer.getvalue(), BOXES).jpeg != buffer.getvalue()
