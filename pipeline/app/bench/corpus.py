"""A web of pictures for the fetching benchmarks: a few hundred distinct ones with the sizes, formats and textures of web pictures, made once.

Sides of 300 to 1,280 pixels; of twenty, eighteen are JPEGs (qualities 75 to 92, every fifth progressive), one is a WebP and one a drawing as PNG. The
texture is noise whose amplitude falls with the frequency, as in photographs, under edges; so decoders and encoders work about as hard as on them.
"""

import io
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from pipeline.core import storage

DISTINCT = 300  # pictures; a crawl gets them under as many URLs as asked for
SIDES = (300, 1280)
QUALITIES = (75, 82, 88, 92)
ASPECTS = (4 / 3, 3 / 2, 1.0, 3 / 4, 2 / 3, 16 / 9)
GREY_DEVIATION, COLOUR_DEVIATION = 38.0, 12.0  # of 0..255
POWER = 1.28  # of the frequency that the amplitude falls with: the average picture gets 150 KB
EDGES = 12
VERSION = 1  # of what is drawn


@dataclass(frozen=True)
class Corpus:
    """`folder`/pictures holds the files `names`."""

    folder: Path
    names: tuple[str, ...]
    bytes: int

    def urls(self, base: str, number: int) -> Iterator[str]:
        """`number` different URLs under which the pictures are served, in turn."""
        for copy in range(number):
            yield f"{base}/pictures/{self.names[copy % len(self.names)]}?copy={copy // len(self.names)}"


def corpus(folder: Path, distinct: int) -> Corpus:
    """Draw what is not there yet: the same arguments give the same bytes."""
    folder = folder / f"pictures-{distinct}-v{VERSION}"
    record = folder / "corpus.json"
    if not record.exists():
        (folder / "pictures").mkdir(parents=True, exist_ok=True)
        sizes = {}
        for number in range(distinct):
            name, data = picture(number)
            (folder / "pictures" / name).write_bytes(data)
            sizes[name] = len(data)
        storage.write_bytes(str(record), json.dumps(sizes).encode())
    sizes = json.loads(record.read_bytes())
    return Corpus(folder, tuple(sizes), sum(sizes.values()))


def picture(number: int) -> tuple[str, bytes]:
    """File name and bytes."""
    draw = np.random.default_rng(number)
    width, height = _size(draw)
    buffer = io.BytesIO()
    if number % 20 == 7:
        _drawing(draw, width, height).save(buffer, "PNG")
        return f"{number:04d}.png", buffer.getvalue()
    photo, quality = photograph(draw, width, height), int(draw.choice(QUALITIES))
    if number % 20 == 13:
        photo.save(buffer, "WEBP", quality=quality, method=2)
        return f"{number:04d}.webp", buffer.getvalue()
    photo.save(buffer, "JPEG", quality=quality, progressive=number % 5 == 0, optimize=True)
    return f"{number:04d}.jpg", buffer.getvalue()


def _size(draw: np.random.Generator) -> tuple[int, int]:
    """The long side evenly up to 1,280, the short one never below 300."""
    aspect = float(draw.choice(ASPECTS))
    long_over_short = max(aspect, 1 / aspect)
    short = int(draw.integers(SIDES[0], math.floor(SIDES[1] / long_over_short) + 1))
    long = round(short * long_over_short)
    return (long, short) if aspect >= 1 else (short, long)


def photograph(draw: np.random.Generator, width: int, height: int, power: float = POWER) -> Image.Image:
    """RGB; the texture's amplitude falls with this power of the frequency."""
    planes = [GREY_DEVIATION * _natural_noise(draw, width, height, power) + 128]
    planes += [COLOUR_DEVIATION * _natural_noise(draw, width, height, power) + 128 for _ in range(2)]
    image = Image.fromarray(np.stack(planes, axis=2).clip(0, 255).astype(np.uint8), "YCbCr").convert("RGB")
    return _with_edges(draw, image)


def _natural_noise(draw: np.random.Generator, width: int, height: int, power: float) -> np.ndarray:
    """Deviation 1; the amplitude falls with a power of the frequency."""
    spectrum = np.fft.rfft2(draw.standard_normal((height, width), dtype=np.float32))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    spectrum /= np.maximum(frequency, 1 / max(width, height)) ** power
    spectrum[0, 0] = 0
    noise = np.fft.irfft2(spectrum, (height, width))
    scaled: np.ndarray = noise / noise.std()
    return scaled


def _with_edges(draw: np.random.Generator, image: Image.Image) -> Image.Image:
    """Translucent shapes, so that textures meet along edges."""
    shapes = Image.new("RGBA", image.size)
    pen = ImageDraw.Draw(shapes)
    for _ in range(EDGES):
        corners = [(int(x), int(y)) for x, y in draw.integers(0, image.size, (3, 2))]
        red, green, blue, alpha = (int(value) for value in draw.integers((0, 0, 0, 40), (256, 256, 256, 160)))
        pen.polygon(corners, fill=(red, green, blue, alpha))
    return Image.alpha_composite(image.convert("RGBA"), shapes).convert("RGB")


def _drawing(draw: np.random.Generator, width: int, height: int) -> Image.Image:
    return _with_edges(draw, Image.new("RGB", (width, height), "white"))
