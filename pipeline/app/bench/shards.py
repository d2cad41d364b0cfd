"""`albef bench shards`: walking tars, decoding and the whole way to batches, beside webdataset with Pillow and torchvision; resuming and scaling."""

import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.app.bench import albef_reading as peer
from pipeline.app.bench import our_reading as ours
from pipeline.app.bench.moto import s3_bucket
from pipeline.app.bench.photo_shards import LARGE, SMALL, PhotoShards, Sizes, photo_shards, repeated
from pipeline.app.bench.row import BenchRow, alone, compared, measure
from pipeline.app.bench.s3_clients import client_rows
from pipeline.app.bench.usage import cpu_seconds_of
from pipeline.core import storage
from shards import tar
from shards.dataset import Dataset
from shards.pixels.transforms import Transform
from shards.remote.ranges import RangeReader
from shards.stage_times import STAGES, StageTimes
from shards.tar_stream import LocalSlices

log = logging.getLogger(__name__)

UNIT = "pictures/CPU-s"
LARGE_SHARE = 4  # one large picture a round for so many small ones: they take about as long
EPOCH_SAMPLES = 100_000
EPOCH_PLACES = (0.0, 0.5, 0.9)
AUGMENTED = "crop, flip and RandAugment to uint8; the device normalises"
S3_NOTE = "moto in another process, whose CPU seconds do not count; an empty cache each time; the peer reads the http URLs through curl, which counts"
CROPPED = "crop and flip to uint8; RandAugment and normalisation are left to the device"
GPUS, PAIRS_PER_GPU_S = 8, 1400


@dataclass(frozen=True)
class Scale:
    """Small pictures in a round, rounds of ours and the peer in turn, and where the drawn pictures stay for the next time."""

    pictures: int
    rounds: int
    work: Path

    def of(self, sizes: Sizes) -> PhotoShards:
        return photo_shards(self.work, sizes, self.pictures_of(sizes))

    def pictures_of(self, sizes: Sizes) -> int:
        return self.pictures if sizes is SMALL else max(peer.BATCH, self.pictures // LARGE_SHARE)


def run(cases: Sequence[str], scale: Scale) -> list[BenchRow]:
    with _one_thread():
        return measure(cases, CASES, scale)


def tar_walk(scale: Scale) -> list[BenchRow]:
    """The members of every sample found; then every sample read."""
    photos = scale.of(SMALL)
    dataset = Dataset.open(str(photos.folder))
    note = f"{photos.samples} samples of three members on local disk, in the page cache; {photos}"

    def raw() -> int:
        return _count(peer.raw_samples(photos.urls))

    return [
        _per_cpu_second(
            "tar-walk",
            lambda: _walked(photos.urls),
            raw,
            scale.rounds,
            "webdataset",
            f"{note}; ours: headers checked, members found, no picture read (tar-read does)",
        ),
        _per_cpu_second(
            "tar-read", lambda: ours.read_all(dataset), raw, scale.rounds, "webdataset", f"{note}; ours: by index, copied out, crc32c checked, captions parsed"
        ),
    ]


def decode(scale: Scale, sizes: Sizes) -> list[BenchRow]:
    """Whole pictures to RGB."""
    photos, pictures = scale.of(sizes), scale.pictures_of(sizes)
    dataset = Dataset.open(str(photos.folder))
    return [
        _per_cpu_second(
            f"decode-{sizes.name}",
            lambda: ours.decode_first(dataset, pictures),
            lambda: _count(peer.decoded(photos.urls)),
            scale.rounds,
            "webdataset + PIL",
            f"{pictures} whole pictures to RGB; {photos}",
        )
    ]


def transformed(scale: Scale, sizes: Sizes, case: str, transform: Transform, done: str, collate: Callable[..., Any] = ours.uint8_batch) -> list[BenchRow]:
    """Bytes to batches of 64."""
    photos, pictures = scale.of(sizes), scale.pictures_of(sizes)
    dataset = Dataset.open(str(photos.folder))
    note = f"{pictures} pictures a round to batches of {peer.BATCH} at {ours.RESOLUTION} px; {photos}; peer: ALBEF's whole transform to float32; ours: {done}"
    return [
        _per_cpu_second(
            case, lambda: _our_batches(dataset, transform, pictures, collate), lambda: _peer_batches(photos.urls, pictures), scale.rounds, peer.NAME, note
        )
    ]


def s3_walk(scale: Scale) -> list[BenchRow]:
    """Every sample from S3 into memory, and what of it is paid once, when a process opens its client."""
    photos = scale.of(SMALL)
    with _on_s3(photos, scale.work) as (bucket, urls):
        note = f"{photos.samples} samples; {S3_NOTE}; ours: a new client, through the node cache, crc32c checked; {photos}"
        walk = _per_cpu_second("s3-walk", partial(_read_remote, bucket), lambda: _count(peer.raw_samples(urls)), scale.rounds, "webdataset", note)
        starts = [cpu_seconds_of(partial(_read_first, bucket))[1] for _ in range(scale.rounds)]
        return [
            walk,
            alone("s3-start", "CPU s", starts, "a new client, the dataset opened and its first sample read, which fetches up to 8 MiB; part of s3-walk"),
        ]


def s3_augment(scale: Scale) -> list[BenchRow]:
    """From S3 to batches."""
    photos = scale.of(SMALL)
    pictures = photos.samples // peer.BATCH * peer.BATCH
    with _on_s3(photos, scale.work) as (bucket, urls):
        note = f"{pictures} pictures; {S3_NOTE}; otherwise as augment-small; {photos}"
        return [
            _per_cpu_second("s3-augment", partial(_augment_remote, bucket, pictures), partial(_peer_batches, urls, pictures), scale.rounds, peer.NAME, note)
        ]


def s3_clients(scale: Scale) -> list[BenchRow]:
    """Ranges by the clients there are; random bytes."""
    with s3_bucket(scale.work / "s3") as (bucket, _):
        return client_rows(bucket, scale.rounds)


def first_batch(scale: Scale) -> list[BenchRow]:
    """Wall seconds from nothing open to the first batch, at several places of an epoch."""
    photos = scale.of(SMALL)
    folder = repeated(photos, EPOCH_SAMPLES)
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    _first_batch(folder, 0), _peer_first_batch(urls, 0)  # what is imported and cached once
    seconds: dict[float, tuple[list[float], list[float]]] = {place: ([], []) for place in EPOCH_PLACES}
    for _ in range(scale.rounds):
        for place, (our_s, peer_s) in seconds.items():
            sample = int(place * EPOCH_SAMPLES)
            our_s.append(_wall_s(partial(_first_batch, folder, sample)))
            peer_s.append(_wall_s(partial(_peer_first_batch, urls, sample)))
    note = (
        f"wall seconds to the first batch of {peer.BATCH}, augmented, one process; epoch of {EPOCH_SAMPLES} samples in {len(urls)} shards on local disk; "
        "ours opens the dataset and seeks, webdataset skips samples before it decodes"
    )
    rows = [compared(f"first-batch {place:.0%}", "s", *seconds[place], "webdataset skipping", note, more_is_better=False) for place in EPOCH_PLACES]
    spread, peer_spread = (_spread([statistics.median(seconds[place][side]) for place in EPOCH_PLACES]) for side in (0, 1))
    note = "slowest over fastest of the three places, of the medians; 1 is flat"
    return [*rows, compared("first-batch spread", "ratio", [spread], [peer_spread], "webdataset skipping", note, more_is_better=False)]


def scaling(scale: Scale) -> list[BenchRow]:
    """Pictures a second of wall time with more threads and processes, and what a machine of GPUs needs."""
    photos = scale.of(SMALL)
    dataset = Dataset.open(str(photos.folder))
    rows = []
    for threads in (1, 2):
        walls = [_threaded(dataset, ours.augmenting(), scale.pictures, threads).per_wall_s for _ in range(scale.rounds)]
        note = f"as augment-small, in one process whose loader has {threads} worker thread(s); {photos}"
        rows.append(alone(f"scaling {threads} thread(s)", "pictures/s", walls, note))
    for processes in (1, 2):
        walls = [ours.pictures_per_wall_s(photos.folder, processes, scale.pictures) for _ in range(scale.rounds)]
        note = f"as augment-small, in {processes} process(es) of one thread, ranks of one world; {photos}"
        rows.append(alone(f"scaling {processes} process(es)", "pictures/s", walls, note))
    for name, transform in (("augmenting", ours.augmenting()), ("uint8", ours.cropping())):
        rates = [_threaded(dataset, transform, scale.pictures, 1).per_cpu_s for _ in range(scale.rounds)]
        needed = [GPUS * PAIRS_PER_GPU_S / rate for rate in rates]
        note = f"what {GPUS} GPUs at {PAIRS_PER_GPU_S} pairs/s each take, over {statistics.median(rates):.0f} pictures/CPU-s of one thread; {photos}"
        rows.append(alone(f"cores for {GPUS} GPUs, {name}", "cores", needed, note))
    return rows


def stage_timing(scale: Scale) -> list[BenchRow]:
    """What it costs to know where the workers' time goes."""
    photos = scale.of(SMALL)
    dataset = Dataset.open(str(photos.folder))
    times = StageTimes()

    def timed() -> int:
        for _ in range(scale.pictures):
            for stage in STAGES:
                with times.busy(stage):
                    pass
        return scale.pictures

    shares = []
    for _ in range(scale.rounds):
        picture = _rate(partial(_our_batches, dataset, ours.augmenting(), scale.pictures))
        shares.append(100 * picture / _rate(timed))
    return [alone("stage-timing", "% of a picture's CPU", shares, f"{len(STAGES)} timings a picture, beside augment-small; {photos}")]


CASES: dict[str, Callable[[Scale], list[BenchRow]]] = {
    "tar-walk": tar_walk,
    "decode-small": lambda scale: decode(scale, SMALL),
    "decode-large": lambda scale: decode(scale, LARGE),
    "augment-small": lambda scale: transformed(scale, SMALL, "augment-small", ours.augmenting(), AUGMENTED),
    "augment-large": lambda scale: transformed(scale, LARGE, "augment-large", ours.augmenting(), AUGMENTED),
    "augment-float-small": lambda scale: transformed(scale, SMALL, "augment-float-small", ours.augmenting(), "the same, normalised too", ours.float_batch),
    "uint8-small": lambda scale: transformed(scale, SMALL, "uint8-small", ours.cropping(), CROPPED),
    "uint8-large": lambda scale: transformed(scale, LARGE, "uint8-large", ours.cropping(), CROPPED),
    "s3-walk": s3_walk,
    "s3-augment": s3_augment,
    "s3-clients": s3_clients,
    "first-batch": first_batch,
    "scaling": scaling,
    "stage-timing": stage_timing,
}


def _per_cpu_second(case: str, our_work: Callable[[], int], peer_work: Callable[[], int], rounds: int, peer_name: str, note: str) -> BenchRow:
    """In turn, after one of each that does not count: what is imported, cached and compiled once."""
    our_work(), peer_work()
    our_rates, peer_rates = [], []
    for _ in range(rounds):
        our_rates.append(_rate(our_work))
        peer_rates.append(_rate(peer_work))
    return compared(case, UNIT, our_rates, peer_rates, peer_name, note)


def _rate(work: Callable[[], int]) -> float:
    number, cpu_s = cpu_seconds_of(work)
    return number / cpu_s


def _count(samples: Any) -> int:
    return sum(1 for _ in samples)


def _walked(urls: Sequence[str]) -> int:
    samples = 0
    for url in urls:
        with LocalSlices(url) as data:
            for group in tar.groups(data, url):
                samples += group.refused is None
    return samples


def _our_batches(dataset: Dataset, transform: Transform, pictures: int, collate: Callable[..., Any] = ours.uint8_batch) -> int:
    with closing(ours.loader_of(dataset, transform, collate)) as loader:
        return ours.pictures_in(ours.batches_from(loader), pictures)


def _peer_batches(urls: list[str], pictures: int) -> int:
    return peer.pictures_in(peer.augmented(urls, ours.RESOLUTION), pictures)


@contextmanager
def _on_s3(photos: PhotoShards, work: Path) -> Iterator[tuple[str, list[str]]]:
    """The dataset copied to a server of ours: its folder, and the http URLs of its tars."""
    with s3_bucket(work / "s3") as (bucket, http):
        for path in filter(Path.is_file, photos.folder.rglob("*")):
            storage.write_bytes(f"{bucket}/{path.relative_to(photos.folder)}", path.read_bytes())
        yield bucket, [f"{http}/{Path(url).name}" for url in photos.urls]


def _read_remote(bucket: str) -> int:
    with _uncached(bucket) as dataset:
        return ours.read_all(dataset)


def _read_first(bucket: str) -> None:
    with _uncached(bucket) as dataset:
        dataset.read(0)


def _augment_remote(bucket: str, pictures: int) -> int:
    with _uncached(bucket) as dataset:
        return _our_batches(dataset, ours.augmenting(), pictures)


@contextmanager
def _uncached(bucket: str) -> Iterator[Dataset]:
    """The dataset as a node reads it that has nothing of it yet."""
    with tempfile.TemporaryDirectory(prefix="albef-bench-") as cache, closing(RangeReader(cache_dir=cache)) as reader:
        yield Dataset.open(bucket, reader=reader)


def _first_batch(folder: Path, sample: int) -> Any:
    with closing(ours.loader_of(Dataset.open(str(folder)), ours.augmenting())) as loader:
        return next(ours.batches_from(loader, sample // peer.BATCH))


def _peer_first_batch(urls: list[str], sample: int) -> Any:
    return next(peer.skipped(urls, sample, ours.RESOLUTION))


def _wall_s(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _spread(seconds: Sequence[float]) -> float:
    return max(seconds) / min(seconds)


@dataclass(frozen=True)
class _Speed:
    per_wall_s: float
    per_cpu_s: float


def _threaded(dataset: Dataset, transform: Transform, pictures: int, threads: int) -> _Speed:
    with closing(ours.loader_of(dataset, transform, num_workers=threads)) as loader:
        batches = ours.batches_from(loader)
        next(batches)
        start = time.perf_counter()
        number, cpu_s = cpu_seconds_of(lambda: ours.pictures_in(batches, pictures))
        return _Speed(number / (time.perf_counter() - start), number / cpu_s)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Both sides with one thread of torch and OpenCV each: more would cost CPU seconds and gain none."""
    import cv2
    import torch

    threads, cv2_threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        cv2.setNumThreads(cv2_threads)
