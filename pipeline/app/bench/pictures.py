"""The benchmark `pictures`: JPEGs of mixed sizes made ready for storage, beside img2dataset's Resizer with the same settings, in CPU time."""

import io
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from pipeline.app.bench.row import BenchRow, compared

SHORTEST, LONGEST = 300, 1280  # pixels
SHAPES = (2 / 3, 3 / 4, 1.0, 9 / 16, 4 / 3)  # height / width
QUALITIES = (75, 80, 85, 90)
CHUNK = 50  # pictures of one side before the other's turn: both meet the same moments of a shared machine


def corpus(pictures: int, progressive: bool = False, seed: int = 0) -> list[bytes]:
    """Texture whose amplitude falls with frequency as in photographs, with edges on it; the same arguments give the same bytes."""
    rng = np.random.default_rng(seed)
    return [_jpeg(rng, progressive) for _ in range(pictures)]


def compare(pictures: int = 600, rounds: int = 5, progressive: bool = False, image_size: int = 256) -> BenchRow:
    """Milliseconds of CPU a picture; the median over the rounds."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks a server for its newest version otherwise
    from img2dataset.resizer import Resizer

    from ingest.picture import Preparer
    from ingest.store import StoreConfig

    store = StoreConfig(image_size=image_size)
    prepare = Preparer(store)
    resizer = Resizer(image_size, store.resize_mode, not store.upscale, encode_quality=store.encode_quality, skip_reencode=store.skip_reencode)
    bodies = corpus(pictures, progressive)
    ours, theirs = [], []
    for _ in range(rounds):
        spent = [0.0, 0.0]
        for start in range(0, pictures, CHUNK):
            spent[0] += _cpu_s(prepare, bodies[start : start + CHUNK])
            spent[1] += _cpu_s(lambda body: resizer(io.BytesIO(body)), bodies[start : start + CHUNK])
        ours.append(1000 * spent[0] / pictures)
        theirs.append(1000 * spent[1] / pictures)
    mean_kb = sum(map(len, bodies)) / pictures / 1000
    note = (
        f"{pictures} JPEGs of {SHORTEST} to {LONGEST} px, {mean_kb:.0f} kB each, to {image_size} keep_ratio, quality {store.encode_quality}; "
        "ours reads orientation and profile and makes the perceptual hash too"
    )
    case = "pictures-progressive" if progressive else "pictures"
    return compared(case, "ms CPU/picture", ours, theirs, "img2dataset Resizer", note, more_is_better=False)


def _cpu_s(work: Callable[[bytes], Any], bodies: list[bytes]) -> float:
    start = time.process_time()
    for body in bodies:
        work(body)
    return time.process_time() - start


def _jpeg(rng: np.random.Generator, progressive: bool) -> bytes:
    from PIL import Image, ImageDraw

    width = int(rng.integers(SHORTEST, LONGEST + 1))
    height = int(np.clip(width * rng.choice(SHAPES), SHORTEST, LONGEST))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1
    light, *colours = (np.fft.irfft2(frequency**-1.2 * np.exp(2j * np.pi * rng.random(frequency.shape)), s=(height, width)) for _ in range(4))
    texture = np.dstack([light / light.std() + 0.4 * colour / colour.std() for colour in colours])
    image = Image.fromarray(np.clip(texture * 45 + 128, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(6):
        x, y, side = int(rng.integers(width)), int(rng.integers(height)), int(rng.integers(10, 200))
        draw.rectangle((x, y, x + side, y + side // 2), fill=tuple(int(level) for level in rng.integers(0, 256, 3)))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=int(rng.choice(QUALITIES)), progressive=progressive)
    return buffer.getvalue()
