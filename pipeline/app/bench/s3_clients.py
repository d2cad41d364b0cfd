"""What a gigabyte of shards costs on its way from an S3 store to the node's disk: our transport beside the clients it could have used."""

import os
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipeline.app.bench.row import BenchRow, alone, compared
from pipeline.core import storage
from shards.remote.ranges import RangeReader
from shards.remote.transport import CHUNK_BYTES, DEADLINES, Counters, Transport

OBJECT_BYTES = 64 * 2**20  # a server that reads the whole object for each range, as moto does, is kept from being what is measured
PASSES = 2  # over the object in a round
IN_FLIGHT = 4
PIECES_MIB = (4, 8, 16)
SAMPLE_BYTES = 56_000
UNIT = "CPU s/GB"
NOTE = f"CPU seconds of this process for a gigabyte from moto in another, {IN_FLIGHT} requests in flight, each range written to a file"

Read = Callable[[str, int, int], Any]  # (url, start, end) -> an iterable of the range's bytes in chunks


def client_rows(folder: str, rounds: int = 3) -> list[BenchRow]:
    """A row for each peer and size of piece, all measured in turn; then what reads through the node's cache cost, empty and warm.

    `folder` is s3://; obstore and s3torchconnectorclient are measured where they are installed.
    """
    with _object(folder) as url:
        peers = {name: make() for name, (package, make) in PEERS.items() if find_spec(package)}
        ours, rows = _our_transport(), []
        note = f"{NOTE} in {tempfile.gettempdir()}"
        for mib in PIECES_MIB:
            cost: dict[str, list[float]] = {name: [] for name in ("ours", *peers)}
            for _ in range(rounds):
                for name, read in {"ours": ours, **peers}.items():
                    cost[name].append(_cpu_s_per_gb(partial(_read_to_files, read, url), mib * 2**20))
            rows += [compared(f"s3-client {mib} MiB", UNIT, cost["ours"], cost[name], name, note, more_is_better=False) for name in peers]
        return [*rows, *_cache_rows(url, rounds)]


def _cache_rows(url: str, rounds: int) -> list[BenchRow]:
    rows = []
    for mib in PIECES_MIB:
        cold, warm = [], []
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as cache:
                reader = RangeReader(3 * OBJECT_BYTES, cache, piece_bytes=mib * 2**20, requests_in_flight=IN_FLIGHT)
                reader.read(url, 0, 1, OBJECT_BYTES, identity="first")  # a process connects once, however much it reads
                read = partial(_read_samples, reader, url)
                cold.append(_cpu_s_per_gb(read, mib * 2**20, passes=1))
                warm.append(_cpu_s_per_gb(read, mib * 2**20, passes=1))
                reader.close()
        note = f"reads of {SAMPLE_BYTES} bytes through the node's cache in {tempfile.gettempdir()}, which"
        rows.append(alone(f"s3-cache empty, {mib} MiB", UNIT, cold, f"{note} fetches and writes the pieces"))
        rows.append(alone(f"s3-cache warm, {mib} MiB", UNIT, warm, f"{note} has them"))
    return rows


@contextmanager
def _object(folder: str) -> Iterator[str]:
    url = storage.join(folder, f"bench-{uuid.uuid4().hex[:12]}.bin")
    storage.write_bytes(url, os.urandom(OBJECT_BYTES))
    try:
        yield url
    finally:
        storage.remove(url)


def _cpu_s_per_gb(read: Callable[[int], None], piece: int, passes: int = PASSES) -> float:
    before = time.process_time()
    for _ in range(passes):
        read(piece)
    return (time.process_time() - before) / (passes * OBJECT_BYTES / 1e9)


def _read_to_files(read: Read, url: str, piece: int) -> None:
    folder = tempfile.mkdtemp()

    def fetched(start: int) -> int:
        with Path(folder, str(start)).open("wb", buffering=0) as file:
            return sum(file.write(chunk) for chunk in read(url, start, start + piece))

    try:
        with ThreadPoolExecutor(IN_FLIGHT) as pool:
            assert sum(pool.map(fetched, range(0, OBJECT_BYTES, piece))) == OBJECT_BYTES
    finally:
        shutil.rmtree(folder)


def _read_samples(reader: RangeReader, url: str, piece: int) -> None:
    def read(first: int) -> int:
        return sum(len(reader.read(url, start, min(SAMPLE_BYTES, first + piece - start), OBJECT_BYTES)) for start in range(first, first + piece, SAMPLE_BYTES))

    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        assert sum(pool.map(read, range(0, OBJECT_BYTES, piece))) == OBJECT_BYTES


def _our_transport() -> Read:
    transport = Transport(DEADLINES, Counters())

    def read(url: str, start: int, end: int) -> Any:
        return transport.chunks(url, start, end, OBJECT_BYTES, time.monotonic() + 60, threading.Event())

    return read


def _s3fs() -> Read:
    return lambda url, start, end: [storage.read_range(url, start, end)]


def _obstore() -> Read:
    import obstore
    from obstore.store import S3Store

    stores: dict[str, Any] = {}

    def read(url: str, start: int, end: int) -> Any:
        bucket, _, key = url.removeprefix("s3://").partition("/")
        if bucket not in stores:
            stores[bucket] = S3Store(bucket, client_options={"allow_http": True})
        return iter(obstore.get(stores[bucket], key, options={"range": (start, end)}).stream(min_chunk_size=CHUNK_BYTES))

    return read


def _s3torchconnector() -> Read:
    from s3torchconnectorclient._mountpoint_s3_client import MountpointS3Client

    endpoint, region = os.environ.get("AWS_ENDPOINT_URL"), os.environ.get("AWS_DEFAULT_REGION", "us-east-1")
    client = MountpointS3Client(region=region, endpoint=endpoint, force_path_style=endpoint is not None)

    def read(url: str, start: int, end: int) -> Any:
        bucket, _, key = url.removeprefix("s3://").partition("/")
        return iter(client.get_object(bucket, key, start=start, end=end))

    return read


PEERS: dict[str, tuple[str, Callable[[], Read]]] = {
    "s3fs": ("s3fs", _s3fs),
    "obstore": ("obstore", _obstore),
    "s3torchconnector": ("s3torchconnectorclient", _s3torchconnector),
}
