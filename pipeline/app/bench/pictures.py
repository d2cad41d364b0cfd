"""The benchmark `pictures`: those of the fetching benchmarks made ready for storage, beside img2dataset's Resizer with the same settings, in CPU time.

What it takes is what is left of a crawl when the fetching costs nothing.
"""

import io
import os
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline.app.bench.corpus import DISTINCT, corpus
from pipeline.app.bench.row import BenchRow, compared

CASE = "pictures"
SHORT_SIDE = 256
CHUNK = 20  # pictures of one side before the other's turn: both meet the same moments of a shared machine
PEER = "img2dataset Resizer"
Bodies = Sequence[bytes]


def compare(work: Path, rounds: int, distinct: int = DISTINCT) -> list[BenchRow]:
    """Milliseconds of CPU a picture; the median over the rounds: of all, then of each format."""
    made = corpus(work, distinct)
    formats = defaultdict[str, list[bytes]](list)
    for name in made.names:
        body = (made.folder / "pictures" / name).read_bytes()
        formats[_format(body)].append(body)
    every = [body for bodies in formats.values() for body in bodies]
    return [_row(CASE, every, rounds), *(_row(f"{CASE}-{name}", bodies, rounds) for name, bodies in formats.items())]


def _row(case: str, bodies: Bodies, rounds: int) -> BenchRow:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks a server for its newest version otherwise
    from img2dataset.resizer import Resizer

    from ingest.picture import Preparer
    from ingest.store import StoreConfig

    store = StoreConfig(image_size=SHORT_SIDE)
    prepare = Preparer(store)
    resizer = Resizer(store.image_size, store.resize_mode, not store.upscale, encode_quality=store.encode_quality, skip_reencode=store.skip_reencode)
    ours, theirs = zip(*(_spent_by_turns(prepare, partial(_resized, resizer), bodies) for _ in range(rounds)), strict=True)
    note = (
        f"{len(bodies)} pictures of {sum(map(len, bodies)) / len(bodies) / 1000:.0f} kB, to short side {SHORT_SIDE}, quality {store.encode_quality}; "
        "ours reads orientation and profile and makes the perceptual hash too"
    )
    return compared(case, "ms CPU/picture", ours, theirs, PEER, note, more_is_better=False)


def _format(body: bytes) -> str:
    image = Image.open(io.BytesIO(body))
    return "progressive" if image.info.get("progressive") else str(image.format).lower()


def _resized(resizer: Any, body: bytes) -> None:
    error = resizer(io.BytesIO(body))[-1]
    assert error is None, error  # a picture that it refuses would be a cheap one


def _spent_by_turns(one: Callable[[bytes], Any], other: Callable[[bytes], Any], bodies: Bodies) -> tuple[float, float]:
    """Milliseconds a picture of each."""
    spent = [0.0, 0.0]
    for start in range(0, len(bodies), CHUNK):
        for side, work in enumerate((one, other)):
            spent[side] += _cpu_s(work, bodies[start : start + CHUNK])
    return 1000 * spent[0] / len(bodies), 1000 * spent[1] / len(bodies)


def _cpu_s(work: Callable[[bytes], Any], bodies: Bodies) -> float:
    start = time.process_time()
    for body in bodies:
        work(body)
    return time.process_time() - start
