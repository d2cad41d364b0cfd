"""Pictures as the original made them: golden operations, Pillow's resize, torchvision's distribution of crops."""

import io
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from torchvision.transforms import RandomResizedCrop

from pipeline.core.errors import ConfigError
from shards.pixels.randaugment import OPERATIONS, RandAugment, drawn_operations, sharpness
from shards.pixels.transforms import EvalTransform, PretrainTransform, Transform, crop_box
from shards.random_stream import TRANSFORM, item_keys, uniforms
from shards.text_rules import pre_caption, pre_question

from ..conftest import picture

DATA = Path(__file__).parents[2] / "data"
GOLDEN = load_file(DATA / "randaugment.safetensors")
MADE = [name for name in GOLDEN if name != "input"]
OPENCV_4_INTERPOLATES = ("Shear", "Rotate")


def difference(name: str, exact: bool) -> np.ndarray:
    """Ours minus the golden picture of an operation."""
    operation = (name.rstrip("+-"), -1 if name.endswith("-") else 1)
    return RandAugment(sharpness="original", exact=exact).apply(GOLDEN["input"], [operation]).astype(int) - GOLDEN[name]


@pytest.mark.parametrize("name", MADE)
def test_in_parity_mode_operations_equal_the_original_code_s_pixel_for_pixel(name: str) -> None:
    assert not difference(name, exact=True).any()


@pytest.mark.parametrize("name", MADE)
def test_in_fast_mode_only_shears_and_rotations_differ_by_their_interpolation(name: str) -> None:
    """The golden pictures come from OpenCV 5, which interpolates exactly; version 4 rounds source coordinates to 1/32 pixel."""
    apart = np.abs(difference(name, exact=False))
    if name.startswith(OPENCV_4_INTERPOLATES):
        assert apart.max() <= 4
        assert (apart > 1).mean() < 0.01
    else:
        assert not apart.any()


def test_there_are_ten_operations_and_the_golden_file_has_them_all() -> None:
    assert len(OPERATIONS) == 10
    assert {name.rstrip("+-") for name in MADE} == set(OPERATIONS)


def test_sharpness_clips_where_the_original_wraps_around() -> None:
    edge = np.full((6, 6, 3), 3, dtype=np.uint8)
    edge[:, 3:] = 250
    ours, original = sharpness(edge, 1.36), sharpness(edge, 1.36, "original")
    assert (ours[2, 2, 0], ours[2, 3, 0]) == (0, 255)
    assert original[2, 2, 0] > 200
    assert original[2, 3, 0] < 50
    assert (ours[0] == edge[0]).all()


def test_a_plain_picture_survives_equalize_and_auto_contrast() -> None:
    plain = np.full((5, 5, 3), 77, dtype=np.uint8)
    assert (RandAugment().apply(plain, [("Equalize", 1)]) == plain).all()
    assert (RandAugment().apply(plain, [("AutoContrast", 1)]) == plain).all()


def test_randaugment_draws_each_operation_alike_and_applies_half_of_them() -> None:
    drawn = uniforms(item_keys(0, 0, np.arange(4000)), TRANSFORM, RandAugment().num_draws)
    seen = [operation for draws in drawn for operation in drawn_operations(draws)]
    counts = np.array([sum(name == operation for name, _ in seen) for operation in OPERATIONS])
    assert abs(len(seen) / 8000 - 0.5) < 0.02
    assert np.abs(counts / 400 - 1).max() < 0.2
    assert abs(np.mean([sign for _, sign in seen])) < 0.05


TABLES, WARPS = ("AutoContrast", "Equalize", "Brightness"), ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")


@pytest.mark.parametrize("first", TABLES)
@pytest.mark.parametrize("second", TABLES)
def test_tables_that_follow_each_other_become_one_without_changing_a_bit(first: str, second: str) -> None:
    augment, image = RandAugment(), GOLDEN["input"]
    one_by_one = augment.apply(augment.apply(image, [(first, 1)]), [(second, 1)])
    assert (augment.apply(image, [(first, 1), (second, 1)]) == one_by_one).all()


@pytest.mark.parametrize("first", WARPS)
@pytest.mark.parametrize("second", WARPS)
def test_warps_that_follow_each_other_become_one_in_fast_mode_and_stay_two_in_parity_mode(first: str, second: str) -> None:
    """Away from the border, where a picture that was moved out and back again has lost nothing, and on a smooth picture, which no interpolation blurs."""
    smooth = cv2.GaussianBlur(GOLDEN["input"], (0, 0), 4)
    fast, exact = RandAugment(), RandAugment(exact=True)
    operations = [(first, 1), (second, -1)]
    one_by_one = exact.apply(exact.apply(smooth, operations[:1]), operations[1:])
    assert (exact.apply(smooth, operations) == one_by_one).all()
    middle = np.s_[36:60, 48:80]
    assert np.abs(fast.apply(smooth, operations)[middle].astype(int) - one_by_one[middle]).max() <= 2


@pytest.mark.parametrize("rule", json.loads((DATA / "text_rules.json").read_text(encoding="utf-8")), ids=lambda rule: rule["text"][:20])
def test_text_rules_equal_the_original_code_s(rule: dict[str, str]) -> None:
    assert pre_caption(rule["text"], 30) == rule["pre_caption_30"]
    assert pre_question(rule["text"], 30) == rule["pre_question_30"]
    assert pre_question(rule["text"], 50) == rule["pre_question_50"]


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def test_evaluation_resizes_as_pillow_does() -> None:
    image = picture(3, 50, 71)
    assert (EvalTransform(32)(png(image)) == np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC))).all()


@pytest.mark.parametrize(("height", "width"), [(240, 320), (100, 900), (64, 64)])
def test_crops_are_distributed_as_torchvision_draws_them(height: int, width: int) -> None:
    torch.manual_seed(0)
    blank, count = torch.zeros(3, height, width), 3000
    theirs = np.array([RandomResizedCrop.get_params(blank, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(count)])
    ours = np.array([crop_box(height, width, (0.2, 1.0), draws) for draws in uniforms(item_keys(1, 0, np.arange(count)), 1, 40)])
    for column in range(4):
        largest = max(theirs[:, column].max(), ours[:, column].max(), 1)
        values = np.linspace(0, largest, 60)
        gap = [abs((theirs[:, column] <= value).mean() - (ours[:, column] <= value).mean()) for value in values]
        assert max(gap) < 0.05  # Kolmogorov-Smirnov: 0.035 at 5 %
    assert (ours[:, 0] + ours[:, 2] <= height).all()
    assert (ours[:, 1] + ours[:, 3] <= width).all()


@pytest.mark.parametrize(("height", "width", "box"), [(10, 1000, (0, 493, 10, 13)), (1000, 10, (493, 0, 13, 10)), (50, 50, (0, 0, 50, 50))])
def test_a_crop_that_never_fits_falls_back_to_the_centre(height: int, width: int, box: tuple[int, int, int, int]) -> None:
    too_wide = np.tile([1 - 1e-9, 1 - 1e-9, 0.5, 0.5], 10) if height <= width else np.tile([1 - 1e-9, 1e-9, 0.5, 0.5], 10)
    assert crop_box(height, width, (1.0, 1.0), too_wide) == box


def test_a_transform_is_its_draws_and_flips_half() -> None:
    transform, data = PretrainTransform(16, scale=(1.0, 1.0), randaugment=False), png(picture(1, 32, 32))
    upright = EvalTransform(16)(data)
    draws = uniforms(item_keys(0, 0, np.arange(400)), TRANSFORM, transform.num_draws)
    draws[:, 1] = 0.5  # a square crop: the whole picture
    flipped = [(transform(data, one) == upright[:, ::-1]).all() for one in draws]
    assert abs(np.mean(flipped) - 0.5) < 0.08
    never = PretrainTransform(16, (1.0, 1.0), flip=False, randaugment=False)
    assert all((never(data, one) == upright).all() for one in draws)
    with pytest.raises(ConfigError, match="crop scale"):
        PretrainTransform(16, scale=(0.9, 0.2))


@pytest.mark.parametrize("transform", [PretrainTransform(16), PretrainTransform(16, mode="parity"), EvalTransform(16)], ids=["fast", "parity", "eval"])
def test_a_transform_fills_the_place_it_is_given(transform: Transform) -> None:
    batch = np.zeros((3, 16, 16, 3), np.uint8)
    for row, draws in enumerate(uniforms(item_keys(0, 0, np.arange(3)), TRANSFORM, transform.num_draws)):
        data = png(picture(row, 40, 50))
        returned = transform(data, draws, batch[row])
        assert np.shares_memory(returned, batch[row])
        assert (batch[row] == transform(data, draws)).all()
    assert batch.any(axis=(1, 2, 3)).all()
