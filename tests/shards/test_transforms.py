"""Pictures as the original made them: golden operations, Pillow's resize, torchvision's distribution of crops."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from torchvision.transforms import RandomResizedCrop

from pipeline.core.errors import ConfigError, DataError
from shards.decode import decode_image
from shards.randaugment import OPERATIONS, RandAugment, equalize, sharpness
from shards.random_stream import TRANSFORM, item_keys, uniforms
from shards.text_rules import pre_caption, pre_question
from shards.transforms import EvalTransform, PretrainTransform, crop_box

from .conftest import picture

DATA = Path(__file__).parents[1] / "data"
GOLDEN = load_file(DATA / "randaugment.safetensors")
EXACT = [name for name in GOLDEN if name != "input" and not name.startswith(("Shear", "Rotate"))]
WARPED = [name for name in GOLDEN if name.startswith(("Shear", "Rotate"))]


def applied(name: str) -> np.ndarray:
    image = RandAugment(sharpness="original").apply(name.rstrip("+-"), GOLDEN["input"], -1 if name.endswith("-") else 1)
    return image.astype(int) - GOLDEN[name]


@pytest.mark.parametrize("name", EXACT)
def test_operations_equal_the_original_code_s(name: str) -> None:
    assert not applied(name).any()


@pytest.mark.parametrize("name", WARPED)
def test_warps_equal_the_original_code_s_up_to_opencv_s_interpolation(name: str) -> None:
    """The golden pictures come from OpenCV 5, which interpolates exactly; version 4 rounds source coordinates to 1/32 pixel."""
    difference = np.abs(applied(name))
    assert difference.max() <= 4
    assert (difference > 1).mean() < 0.01


def test_there_are_ten_operations_and_the_golden_file_has_them_all() -> None:
    assert len(OPERATIONS) == 10
    assert {name.rstrip("+-") for name in GOLDEN if name != "input"} == set(OPERATIONS)


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
    assert (equalize(plain) == plain).all()
    assert (RandAugment().apply("AutoContrast", plain, 1) == plain).all()


def test_randaugment_draws_each_operation_alike_and_applies_half_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int]] = []
    monkeypatch.setattr(RandAugment, "apply", lambda self, name, image, sign: seen.append((name, sign)) or image)
    augment = RandAugment()
    for draws in uniforms(item_keys(0, 0, np.arange(4000)), TRANSFORM, augment.num_draws):
        augment(GOLDEN["input"], draws)
    counts = np.array([sum(name == operation for name, _ in seen) for operation in OPERATIONS])
    assert abs(len(seen) / 8000 - 0.5) < 0.02
    assert np.abs(counts / 400 - 1).max() < 0.2
    assert abs(np.mean([sign for _, sign in seen])) < 0.05


@pytest.mark.parametrize("rule", json.loads((DATA / "text_rules.json").read_text(encoding="utf-8")), ids=lambda rule: rule["text"][:20])
def test_text_rules_equal_the_original_code_s(rule: dict[str, str]) -> None:
    assert pre_caption(rule["text"], 30) == rule["pre_caption_30"]
    assert pre_question(rule["text"], 30) == rule["pre_question_30"]
    assert pre_question(rule["text"], 50) == rule["pre_question_50"]


def test_evaluation_resizes_as_pillow_does() -> None:
    image = picture(3, 50, 71)
    assert (EvalTransform(32)(image) == np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC))).all()


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
    transform, image = PretrainTransform(16, scale=(1.0, 1.0), randaugment=False), picture(1, 32, 32)
    draws = uniforms(item_keys(0, 0, np.arange(400)), TRANSFORM, transform.num_draws)
    draws[:, 1] = 0.5  # a square crop: the whole picture
    flipped = [(transform(image, one) == EvalTransform(16)(image)[:, ::-1]).all() for one in draws]
    assert abs(np.mean(flipped) - 0.5) < 0.08
    assert not any((PretrainTransform(16, (1.0, 1.0), flip=False, randaugment=False)(image, one) != EvalTransform(16)(image)).any() for one in draws)
    with pytest.raises(ConfigError, match="crop scale"):
        PretrainTransform(16, scale=(0.9, 0.2))


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
