"""An epoch from a store that fails one request in a hundred, and a node whose processes are killed: every byte arrives, and is right."""

import fcntl
import hashlib
import multiprocessing
import os
import random
import time
from itertools import islice
from multiprocessing.context import SpawnProcess
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from faulty_front import FAULTS, FaultyFront
from waiting import wait_until

from pipeline.core import storage
from shards import layout, manifest, writer
from shards.dataset import Dataset
from shards.item_maker import Item
from shards.loader import ShardLoader
from shards.pixels.transforms import PretrainTransform
from shards.remote.ranges import RangeReader
from shards.remote.transport import Deadlines

from ..conftest import samples

SHARDS, SAMPLES_PER_SHARD, BATCH = 20, 1000, 500
OBJECTS, OBJECT_BYTES, PIECE_BYTES, CACHE_BYTES = 4, 1_000_000, 50_000, 1_000_000


def digests(items: list[Item]) -> list[tuple[int, str, str]]:
    return [(item.sample, item.caption, hashlib.sha256(item.image.tobytes()).hexdigest()) for item in items]


def epoch(dataset: Dataset, num_workers: int) -> list[list[tuple[int, str, str]]]:
    """The batches of one epoch over the pictures."""
    loader = ShardLoader(
        dataset, transform=PretrainTransform(16), collate=digests, global_batch_size=BATCH, micro_batch_size=BATCH, seed=5,
        epoch_over="images", num_workers=num_workers,
    )  # fmt: skip
    try:
        batches = [batch for (batch,), _ in islice(loader.from_position(loader.start()), loader.steps_per_epoch)]
        assert loader.quarantine == []
        return batches
    finally:
        loader.close()


@pytest.mark.slow
def test_an_epoch_of_20000_samples_from_a_store_that_fails_one_request_in_a_hundred_is_the_local_one(
    tmp_path: Path, s3_bucket: str, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    local, remote = str(tmp_path / "set"), f"{s3_bucket}/set"
    entries = [writer.write_shard(layout.tar_path(local, f"{shard:05d}"), samples(shard, SAMPLES_PER_SHARD), "made") for shard in range(SHARDS)]
    manifest.publish(local, entries, {"success": SHARDS * SAMPLES_PER_SHARD}, {"made": "by a test"})
    for path in Path(local).rglob("*"):
        if path.is_file():
            storage.write_bytes(f"{remote}/{path.relative_to(local)}", path.read_bytes())
    with FaultyFront(port_of(s3_endpoint), share=0.01, seed=1) as front:
        monkeypatch.setenv("AWS_ENDPOINT_URL", front.endpoint)
        storage.filesystem(remote)[0].clear_instance_cache()
        reader = RangeReader(
            cache_dir=str(tmp_path / "cache"), piece_bytes=2**15, deadlines=Deadlines(stall_s=5.0)
        )  # a busy machine is silent for a second, too
        batches = epoch(Dataset.open(remote, reader=reader), num_workers=4)
        counters = reader.counters
        reader.close()
    assert batches == epoch(Dataset.open(local), num_workers=1)
    assert {sample for batch in batches for sample, _, _ in batch} == set(range(SHARDS * SAMPLES_PER_SHARD))
    assert {name: counters[f"retries_{name}"] for name in FAULTS} == dict(front.injected)
    assert min(front.injected.values()) > 0
    assert counters["requests"] == front.requests_at_risk > 2000
    assert counters["bytes_fetched"] == sum(shard.bytes for shard in entries)  # each byte of the epoch came over the wire once


def object_bytes(number: int) -> bytes:
    return random.Random(number).randbytes(OBJECT_BYTES)


def node_reader(folder: str) -> RangeReader:
    return RangeReader(CACHE_BYTES, f"{folder}/cache", piece_bytes=PIECE_BYTES, requests_in_flight=2, deadlines=Deadlines(patience_s=60.0))


def _read_until_told(bucket: str, folder: str, seed: int) -> None:
    """A process of the node: random ranges, each held against what it should be, until there is a file `stop`."""
    choice, reader, expected = random.Random(seed), node_reader(folder), [object_bytes(number) for number in range(OBJECTS)]
    while not Path(folder, "stop").exists():
        number, start = choice.randrange(OBJECTS), choice.randrange(OBJECT_BYTES)
        length = min(choice.randrange(60_000), OBJECT_BYTES - start)
        reader.prefetch(f"{bucket}/{number}", start, start + 2 * PIECE_BYTES, OBJECT_BYTES)
        if reader.read(f"{bucket}/{number}", start, length, OBJECT_BYTES) != expected[number][start : start + length]:
            Path(folder, f"wrong-{os.getpid()}").write_text(f"{number} {start} {length}")
        Path(folder, f"reads-{os.getpid()}").write_text("some")
    reader.close()


def _read_all(url: str, folder: str) -> None:
    reader = node_reader(folder)
    assert reader.read(url, 0, OBJECT_BYTES, OBJECT_BYTES) == object_bytes(0)
    reader.close()


def test_the_processes_of_a_node_fetch_each_piece_once(tmp_path: Path, s3_bucket: str, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url, context = f"{s3_bucket}/0", multiprocessing.get_context("spawn")
    storage.write_bytes(url, object_bytes(0))
    with FaultyFront(port_of(s3_endpoint), share=0.0, seed=0) as front:
        monkeypatch.setenv("AWS_ENDPOINT_URL", front.endpoint)
        processes = [context.Process(target=_read_all, args=(url, str(tmp_path))) for _ in range(3)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert front.requests_at_risk == OBJECT_BYTES // PIECE_BYTES


def cached(folder: Path) -> dict[str, int]:
    """Name and size of what the cache has on disk."""
    found = {}
    for entry in (folder / "cache").glob("*-*"):
        try:
            found[entry.name] = entry.stat().st_size
        except FileNotFoundError:  # removed meanwhile
            continue
    return found


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_processes_killed_at_any_moment_leave_the_node_s_cache_right_bounded_and_open(kills: int, tmp_path: Path, s3_bucket: str) -> None:
    for number in range(OBJECTS):
        storage.write_bytes(f"{s3_bucket}/{number}", object_bytes(number))
    context, choice, most, cut_short = multiprocessing.get_context("spawn"), random.Random(kills), 0, 0

    def started(seed: int) -> SpawnProcess:
        process = context.Process(target=_read_until_told, args=(s3_bucket, str(tmp_path), seed))
        process.start()
        return process

    (tmp_path / "cache").mkdir()
    processes = [started(seed) for seed in range(3)]
    wait_until(lambda: bool(list(tmp_path.glob("reads-*"))))
    for kill in range(kills):
        until = time.monotonic() + choice.uniform(0, 1.5)
        while time.monotonic() < until:
            most = max(most, sum(cached(tmp_path).values()))
            time.sleep(0.01)
        doomed = processes if kill % 7 == 6 else [processes.pop(0)]  # now and then all at once, as when a node is taken away
        for process in doomed:
            process.kill()
        for process in doomed:
            process.join()
        processes = [*processes, started(100 + kill)] if doomed is not processes else [started(100 * seed + kill) for seed in range(3)]
        cut_short += any(unlocked(tmp_path / "cache" / name) for name in cached(tmp_path) if name.endswith(".part"))
    (tmp_path / "stop").touch()
    for process in processes:
        process.join(90)
    assert [process.exitcode for process in processes] == [0, 0, 0]  # nobody waits for the dead
    assert list(tmp_path.glob("wrong-*")) == []
    assert cut_short > 0 or kills < 20  # the kills did hit fetches
    assert CACHE_BYTES // 2 < most <= CACHE_BYTES
    last = node_reader(str(tmp_path))
    for number in range(OBJECTS):
        assert last.read(f"{s3_bucket}/{number}", 0, OBJECT_BYTES, OBJECT_BYTES) == object_bytes(number)
    last.close()
    assert not [name for name in cached(tmp_path) if name.endswith(".part")]


def unlocked(part: Path) -> bool:
    """Whether nobody alive is fetching it."""
    try:
        with part.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (BlockingIOError, FileNotFoundError):
        return False
    return True


def port_of(endpoint: str) -> int:
    port = urlsplit(endpoint).port
    assert port is not None
    return port
