"""Decode crops of mutated JPEGs and count what comes of them; run by test_decode in a process of its own."""

import io
import resource
import sys

import numpy as np
from PIL import Image

from pipeline.core.errors import DataError
from shards.pixels.decode import open_picture


def originals() -> list[bytes]:
    """Baseline and progressive, with all of Pillow's subsamplings."""
    generator = np.random.default_rng(0)
    made = []
    for number in range(12):
        buffer = io.BytesIO()
        pixels = generator.integers(0, 255, (60, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(buffer, "JPEG", quality=80, progressive=number % 2 == 1, subsampling=number % 3, restart_marker_blocks=number % 4)
        made.append(buffer.getvalue())
    return made


def mutated(data: bytes, generator: np.random.Generator) -> bytes:
    """Some bits flipped, a piece cut out or doubled, or the end cut off."""
    damaged = bytearray(data)
    for _ in range(generator.integers(1, 6)):
        damaged[generator.integers(2, len(damaged))] ^= 1 << int(generator.integers(8))
    first, second = sorted(int(place) for place in generator.integers(2, len(damaged), 2))
    kind = generator.integers(4)
    if kind == 0:
        del damaged[first:second]
    elif kind == 1:
        damaged[first:first] = damaged[first:second]
    elif kind == 2:
        del damaged[first:-2]
    return bytes(damaged)


def main(count: int) -> None:
    generator, files = np.random.default_rng(1), originals()
    pictures, settled = 0, 0
    for number in range(count):
        data = mutated(files[number % len(files)], generator)
        try:
            source = open_picture(data, max_pixels=1_000_000)
            top, left = int(generator.integers(source.height)), int(generator.integers(source.width))
            height, width = source.height - top, source.width - left
            assert source.crop(top, left, height, width).shape == (height, width, 3)
            pictures += 1
        except DataError:
            pass
        if number == count // 4:
            settled = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print("pictures", pictures)  # noqa: T201  # its output is what the test reads
    print("errors", count - pictures)  # noqa: T201
    print("leaked_kB", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - settled)  # noqa: T201


if __name__ == "__main__":
    main(int(sys.argv[1]))
