"""The peer of the reading benchmarks: webdataset, Pillow and torchvision with ALBEF's own pre-training transform, as its authors' code has it.

Random crop of 0.2 to 1 of the area to 256 x 256 (bicubic), flip, two of ten operations by OpenCV at magnitude 7 of 10, each applied half of the time, to
float, normalised. Drawn by the libraries' own random numbers.
"""

import random
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Picture = npt.NDArray[np.uint8]

NAME = "webdataset + PIL + torchvision"
BATCH = 64
FILL = (128, 128, 128)
FACTOR = 0.7 * 1.8 + 0.1
SHEAR, SHIFT, DEGREES = 0.7 * 0.3, 0.7 * 10, 0.7 * 30


def raw_samples(urls: list[str]) -> Any:
    """Samples as webdataset gives them: the bytes of each member."""
    import webdataset

    return webdataset.WebDataset(urls, shardshuffle=False, empty_check=False)


def decoded(urls: list[str]) -> Any:
    """(RGB picture, caption)."""
    return raw_samples(urls).decode("pil").to_tuple("jpg", "txt")


def augmented(urls: list[str], resolution: int) -> Any:
    """Batches of (float pictures [B, 3, R, R], captions)."""
    return decoded(urls).map_tuple(pretrain_transform(resolution), str).batched(BATCH)


def pretrain_transform(resolution: int) -> Callable[[Any], Any]:
    """RGB picture of Pillow's to float32 [3, R, R]."""
    from torchvision import transforms

    from shards.pixels.transforms import MEAN, STD

    return transforms.Compose(  # type: ignore[no-any-return]
        [
            transforms.RandomResizedCrop(resolution, scale=(0.2, 1.0), interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(),
            rand_augment,
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )


def rand_augment(image: Any) -> Picture:
    """Two operations drawn with replacement."""
    picture: Picture = np.array(image)
    for name in random.choices(list(OPERATIONS), k=2):
        if random.random() < 0.5:
            picture = OPERATIONS[name](picture, random.choice((-1, 1)))
    return picture


def _by_tables(image: Picture, table_of: Callable[[Picture], Picture | None]) -> Picture:
    channels = []
    for channel in cv2.split(image):
        table = table_of(channel)
        channels.append(channel if table is None else table[channel])
    merged: Picture = cv2.merge(channels)
    return merged


def _stretching(channel: Picture) -> Picture | None:
    low, high = float(channel.min()), float(channel.max())
    if high <= low:
        return None
    scale = 255 / (high - low)
    table: Picture = np.clip(np.arange(256) * scale - low * scale, 0, 255).astype(np.uint8)
    return table


def _equalizing(channel: Picture) -> Picture | None:
    histogram = cv2.calcHist([channel], [0], None, [256], (0, 256)).ravel()
    step = int(histogram[histogram != 0][:-1].sum()) // 255
    if not step:
        return None
    below = np.empty_like(histogram)
    below[0], below[1:] = step // 2, histogram[:-1]
    table: Picture = np.clip(np.cumsum(below) // step, 0, 255).astype(np.uint8)
    return table


def _brighter(image: Picture) -> Picture:
    table = (np.arange(256, dtype=np.float32) * FACTOR).clip(0, 255).astype(np.uint8)
    return table[image]


def _sharper(image: Picture) -> Picture:
    kernel = np.ones((3, 3), dtype=np.float32)
    kernel[1, 1] = 5
    blurred = cv2.filter2D(image, -1, kernel / 13)
    sharpened = image.copy()
    between = blurred.astype(np.float32)[1:-1, 1:-1] + FACTOR * (image.astype(np.float32) - blurred)[1:-1, 1:-1]
    sharpened[1:-1, 1:-1] = between.clip(0, 255).astype(np.uint8)
    return sharpened


def _warped(image: Picture, matrix: Any) -> Picture:
    height, width = image.shape[:2]
    return cv2.warpAffine(image, np.float32(matrix), (width, height), borderValue=FILL, flags=cv2.INTER_LINEAR)  # type: ignore[no-any-return]


def _rotated(image: Picture, degrees: float) -> Picture:
    height, width = image.shape[:2]
    return _warped(image, cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1))


OPERATIONS: dict[str, Callable[[Picture, int], Picture]] = {  # (picture, sign)
    "Identity": lambda image, _: image,
    "AutoContrast": lambda image, _: _by_tables(image, _stretching),
    "Equalize": lambda image, _: _by_tables(image, _equalizing),
    "Brightness": lambda image, _: _brighter(image),
    "Sharpness": lambda image, _: _sharper(image),
    "ShearX": lambda image, sign: _warped(image, [[1, sign * SHEAR, 0], [0, 1, 0]]),
    "ShearY": lambda image, sign: _warped(image, [[1, 0, 0], [sign * SHEAR, 1, 0]]),
    "TranslateX": lambda image, sign: _warped(image, [[1, 0, -sign * SHIFT], [0, 1, 0]]),
    "TranslateY": lambda image, sign: _warped(image, [[1, 0, 0], [0, 1, -sign * SHIFT]]),
    "Rotate": lambda image, sign: _rotated(image, sign * DEGREES),
}


def pictures_in(batches: Any, number: int) -> int:
    """Draw batches until there are `number` pictures; how many there were."""
    seen = 0
    for pictures, _ in batches:
        seen += len(pictures)
        if seen >= number:
            break
    return seen


def skipped(urls: list[str], number: int, resolution: int) -> Iterator[Any]:
    """Batches after the first `number` samples, which are read and thrown away before they are decoded: the cheapest way webdataset has to go on."""
    rest = raw_samples(urls).compose(lambda samples: islice(samples, number, None))
    return iter(rest.decode("pil").to_tuple("jpg", "txt").map_tuple(pretrain_transform(resolution), str).batched(BATCH))
