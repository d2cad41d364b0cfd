"""The pictures of a benchmark: a folder, read and resized by a few threads, every missing or damaged one named."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from pipeline.core import storage
from pipeline.core.errors import DataError
from shards.pixels.decode import Picture, decode_image
from shards.pixels.transforms import EvalTransform

READERS = 4


def read_pictures(folder: str, names: Sequence[str], resolution: int) -> list[Picture]:
    """`uint8 [resolution, resolution, 3]` each, in the order of the names.

    Raises:
        DataError: the first picture that is missing or damaged.
    """
    transform = EvalTransform(resolution)
    with ThreadPoolExecutor(READERS) as readers:
        return list(readers.map(lambda name: _read(folder, name, transform), names))


def read_picture(folder: str, name: str) -> Picture:
    """`uint8 [H, W, 3]`, in its own size."""
    return _read(folder, name, decode_image)


def _read(folder: str, name: str, decoded: Callable[[bytes], Picture]) -> Picture:
    path = storage.join(folder, name)
    data = storage.read_bytes(path)
    try:
        return decoded(data)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def sizes(folder: str, names: Sequence[str]) -> list[int]:
    """File sizes in bytes; with the names they tell one picture set from another without reading it.

    Raises:
        DataError: the first picture that is missing, before anything expensive has begun.
    """
    with ThreadPoolExecutor(READERS) as readers:
        return list(readers.map(lambda name: storage.size(storage.join(folder, name)), names))
