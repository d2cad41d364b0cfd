"""RandAugment on the device against the CPU's: the same draws, the same operations, the same pixels up to the rounding of warps."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from tiny_run import write_dataset

from shards.dataset import Dataset
from shards.item_maker import Item, MadeItems
from shards.pixels.decode import Picture
from shards.pixels.randaugment import KIND, OPERATIONS, RandAugment
from shards.pixels.transforms import PretrainTransform
from shards.random_stream import TRANSFORM, item_keys, uniforms
from training.batch import normalised
from training.config import TrainingConfig
from training.data import Collate, build_loader
from training.device_augment import DrawnRandAugment, Operation
from training.distributed import World
from training.tokenizer import train_vocabulary

SIDE = 96
GOLDEN: Picture = load_file(Path(__file__).parents[1] / "data" / "randaugment.safetensors")["input"][:, :SIDE]


def pictures(count: int) -> list[Picture]:
    """Photo-like ones: the golden one, darkened, turned, and one of a single colour."""
    made = [np.ascontiguousarray(np.rot90(GOLDEN, number) // (1 + number % 3)) for number in range(count - 1)]
    return [*made, np.full((SIDE, SIDE, 3), 77, np.uint8)]


def on_device(settings: RandAugment, images: list[Picture], operations: list[list[Operation]]) -> np.ndarray:
    batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    before = batch.clone()
    after = DrawnRandAugment(settings, operations)(batch)
    assert torch.equal(batch, before)
    assert after.dtype == torch.uint8
    return after.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("sharpness", ["clipped", "original"])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_gives_the_cpu_s_pixels_exactly_or_for_warps_up_to_one_level(name: str, sign: int, sharpness: str) -> None:
    settings = RandAugment(sharpness="original" if sharpness == "original" else "clipped", exact=True)
    images = pictures(5)
    ours = on_device(settings, images, [[(name, sign)]] * 5).astype(int)
    apart = np.abs(ours - np.stack([settings.apply(image, [(name, sign)]) for image in images]))
    if KIND[name] == "warp":
        assert apart.max() <= 1
        assert (apart > 0).mean() < 0.01  # shears by 0.21 land half-way between two levels, where float32 rounds either way
    else:
        assert not apart.any()


def test_a_batch_of_drawn_operations_is_what_the_cpu_does_with_the_same_draws() -> None:
    """Against the CPU's fast mode: its warps round places to 1/32 pixel, so on a smooth picture a few levels at most lie between them."""
    transform = PretrainTransform(SIDE)
    draws = uniforms(item_keys(7, 0, np.arange(200)), TRANSFORM, transform.num_draws)
    operations = [transform.operations(row) for row in draws]
    images = (pictures(9) * 23)[:200]
    by_cpu = np.stack([transform.settings.apply(image, drawn) for image, drawn in zip(images, operations, strict=True)])
    ours = on_device(transform.settings, images, operations)
    for number, drawn in enumerate(operations):
        apart = np.abs(ours[number].astype(int) - by_cpu[number])
        kinds = [KIND[name] for name, _ in drawn]
        assert apart.mean() <= (1.0 if "warp" in kinds else 0.0), drawn
    assert sum(len(drawn) > 1 for drawn in operations) > 30
    assert sum(not drawn for drawn in operations) > 30


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_pixels_are_the_same_inside_a_bf16_run_s_autocast(name: str) -> None:
    images = [np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8) for number in range(3)]
    alone = on_device(RandAugment(), images, [[(name, 1)]] * 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert np.array_equal(on_device(RandAugment(), images, [[(name, 1)]] * 3), alone)


def test_draws_travel_with_the_batch_and_are_those_the_cpu_would_have_used() -> None:
    left_to_device = PretrainTransform(SIDE, randaugment=False)
    on_cpu = PretrainTransform(SIDE)
    draws = uniforms(item_keys(1, 2, np.arange(50)), TRANSFORM, on_cpu.num_draws)
    assert left_to_device.num_draws == on_cpu.num_draws  # so that crops and flips are the same too
    assert [left_to_device.operations(row) for row in draws] == [on_cpu.operations(row) for row in draws]


@pytest.mark.parametrize("left_to_device", [True, False])
def test_a_batch_holds_the_loader_s_pictures_without_a_copy_and_its_pixels_are_augmented_by_the_items_draws(left_to_device: bool) -> None:
    images = np.stack(pictures(8))
    keys = item_keys(3, 0, np.arange(8))
    items = MadeItems([Item(int(keys[row]), f"{row}", row, 0, images[row], f"caption {row}") for row in range(8)], images)
    tokenizer = train_vocabulary((item.caption for item in items), 100)
    transform = PretrainTransform(SIDE, randaugment=not left_to_device)
    batch = Collate(tokenizer, 8, 0.15, 4, transform if left_to_device else None)(items)
    assert batch.images.data_ptr() == images.ctypes.data
    draws = uniforms(keys, TRANSFORM, transform.num_draws)
    drawn = DrawnRandAugment(transform.settings, [transform.operations(row) for row in draws])
    assert any(drawn.operations)
    assert torch.equal(batch.pixels(torch.float32), normalised(drawn(batch.images) if left_to_device else batch.images))


def test_training_sees_the_same_pictures_wherever_they_are_augmented(tmp_path: Path) -> None:
    """The whole way from shards to normalised pixels; the CPU's warps round places to 1/32 pixel, which tells on pictures of pure noise."""
    write_dataset(tmp_path / "dataset", samples=48)
    dataset = Dataset.open(str(tmp_path / "dataset"))
    tokenizer = train_vocabulary(["red dog on the grass"], 100)
    pixels = {}
    for place in ("cpu", "device"):
        model = {"image_size": 32, "vision_width": 32, "vision_heads": 2}
        config = TrainingConfig.model_validate({"dataset": dataset.folder, "model": model, "augment_on": place, "global_batch_size": 32, "group_size": 4})
        loader = build_loader(config, dataset, tokenizer, World(0, 1, torch.device("cpu")), 32, 1)
        (batch,), _ = next(loader.from_position(loader.start()))
        loader.close()
        assert (batch.randaugment is None) == (place == "cpu")
        pixels[place] = batch.pixels(torch.float32)
    apart = (pixels["cpu"] - pixels["device"]).abs().mean(dim=(1, 2, 3))
    assert (apart < 1e-6).sum() >= 10  # nothing drawn, or tables, sharpness and translations alone
    assert apart.max() < 0.05  # of standard deviations


def test_parity_on_the_device_is_refused() -> None:
    with pytest.raises(ValueError, match="augment_on device"):
        TrainingConfig(dataset="somewhere", transform="parity", augment_on="device")
    TrainingConfig(dataset="somewhere", transform="parity", augment_on="device", randaugment=False)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_on_a_gpu_the_pixels_are_the_cpu_s() -> None:
    transform = PretrainTransform(SIDE)
    draws = uniforms(item_keys(7, 0, np.arange(64)), TRANSFORM, transform.num_draws)
    augment = DrawnRandAugment(transform.settings, [transform.operations(row) for row in draws])
    images = torch.from_numpy(np.stack((pictures(9) * 8)[:64])).permute(0, 3, 1, 2)
    assert (augment(images).int() - augment(images.cuda()).cpu().int()).abs().max() <= 1
