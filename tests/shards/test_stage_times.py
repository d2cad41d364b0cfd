"""Busy time and queue depth of the loader's stages."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import simplejpeg
from faulty_front import RANGED, FaultyFront

from pipeline.core import storage
from shards.dataset import Dataset
from shards.item_maker import Item
from shards.loader import ShardLoader
from shards.pixels.decode import decode_image
from shards.pixels.transforms import PretrainTransform, Transform
from shards.remote.ranges import RangeReader
from shards.stage_times import STAGES, Stage, StageSnapshot, StageTimes

from .conftest import MakeDataset, picture

STEPS = 8
NAP_S = 0.02


def loader(dataset: Dataset, num_workers: int, transform: Transform, collate: Callable[[list[Item]], Any] = len) -> ShardLoader[Any]:
    return ShardLoader(dataset, transform=transform, collate=collate, global_batch_size=4, micro_batch_size=4, num_workers=num_workers)


def after_steps(made: ShardLoader[Any], steps: int = STEPS, think_s: float = 0.0) -> None:
    batches = made.from_position(made.start())
    for _ in range(steps):
        next(batches)
        time.sleep(think_s)
    batches.close()  # type: ignore[attr-defined]  # a generator
    made.close()


def slowest(seen: StageSnapshot) -> Stage:
    return max(seen.busy_s, key=lambda stage: seen.busy_s[stage])


def test_seconds_of_all_threads_add_up_also_when_the_work_fails() -> None:
    times = StageTimes()

    def work() -> None:
        for _ in range(5):
            with contextlib.suppress(ValueError), times.busy("decode"):
                time.sleep(0.01)
                raise ValueError

    start = time.perf_counter()
    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 3 * 5 * 0.01 <= times.snapshot().busy_s["decode"] <= 3 * (time.perf_counter() - start)
    assert times.snapshot().busy_s["read"] == 0


def test_the_difference_of_two_snapshots_is_what_happened_between_them() -> None:
    times = StageTimes()
    times.add("read", 1.0)
    before = times.snapshot()
    times.add("read", 2.0)
    times.add("collate", 6.0)
    between = times.snapshot() - before
    assert between.busy_s == {"read": 2.0, "decode": 0.0, "transform": 0.0, "collate": 6.0}
    assert (before - before).busy_s == dict.fromkeys(STAGES, 0.0)


def test_queues_count_what_no_worker_has_taken_up_and_what_the_trainer_has_not() -> None:
    waiting, running, ready = Future[int](), Future[int](), Future[int]()
    running.set_running_or_notify_cancel()
    ready.set_running_or_notify_cancel()
    ready.set_result(1)
    times = StageTimes()
    times.look_at([ready, running, waiting, waiting])
    times.look_at([ready])
    assert (times.snapshot().mean_queued, times.snapshot().mean_ready) == (1.0, 1.0)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_slow_stage_is_the_one_that_is_named(make_dataset: Callable[..., Dataset], num_workers: int) -> None:
    class SlowDecode(PretrainTransform):
        def decode(self, *arguments: Any) -> Any:
            time.sleep(NAP_S)
            return super().decode(*arguments)

    class SlowTransform(PretrainTransform):
        def finish(self, *arguments: Any) -> Any:
            time.sleep(NAP_S)
            return super().finish(*arguments)

    def slow_collate(items: list[Item]) -> int:
        time.sleep(4 * NAP_S)
        return len(items)

    dataset = make_dataset([40])
    slow: list[tuple[Stage, PretrainTransform, Any]] = [
        ("decode", SlowDecode(16), len),
        ("transform", SlowTransform(16), len),
        ("collate", PretrainTransform(16), slow_collate),
    ]
    for stage, transform, collate in slow:
        made = loader(dataset, num_workers, transform, collate)
        after_steps(made)
        seen = made.stage_times.snapshot()
        assert slowest(seen) == stage
        assert seen.busy_s[stage] >= STEPS * 4 * NAP_S


def test_batches_are_ready_for_a_slow_trainer_and_none_for_a_fast_one(make_dataset: Callable[..., Dataset]) -> None:
    class Slow(PretrainTransform):
        def decode(self, *arguments: Any) -> Any:
            time.sleep(NAP_S)
            return super().decode(*arguments)

    dataset = make_dataset([40])
    relaxed, hurried = loader(dataset, 2, PretrainTransform(16)), loader(dataset, 2, Slow(16))
    after_steps(relaxed, think_s=0.1)
    after_steps(hurried)
    assert relaxed.stage_times.snapshot().mean_ready > 2
    assert hurried.stage_times.snapshot().mean_ready < 1


def test_timing_costs_less_than_a_hundredth_of_the_picture_it_times() -> None:
    times, noise = StageTimes(), np.random.default_rng(0).integers(-20, 20, (256, 320, 3))  # so that there is about as much to decode as in a photograph
    data = simplejpeg.encode_jpeg((picture(1, 256, 320) + noise).clip(0, 255).astype(np.uint8), quality=95)

    def timed() -> None:
        for stage in STAGES:
            with times.busy(stage):
                pass

    assert cpu_s(timed) < 0.01 * cpu_s(lambda: decode_image(data))


def cpu_s(work: Callable[[], Any], repeats: int = 100, rounds: int = 5) -> float:
    """The least of several rounds: what the work itself takes."""
    spent = []
    for _ in range(rounds):
        start = time.thread_time()
        for _ in range(repeats):
            work()
        spent.append(time.thread_time() - start)
    return min(spent)


class SlowFront(FaultyFront):
    """A store that takes its time with every range."""

    async def _hand_on(self, request: bytes, writer: asyncio.StreamWriter, fault: str | None) -> bool:
        if RANGED.match(request):
            await asyncio.sleep(5 * NAP_S)
        return await super()._hand_on(request, writer, fault)


def test_a_slow_store_is_named(make_dataset: MakeDataset, s3_bucket: str, s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_dataset([2] * 16, f"{s3_bucket}/set").folder
    with SlowFront(urlsplit(s3_endpoint).port or 0, share=0.0, seed=0) as front:
        monkeypatch.setenv("AWS_ENDPOINT_URL", front.endpoint)
        storage.filesystem(folder)[0].clear_instance_cache()
        reader = RangeReader(cache_dir=str(tmp_path / "cache"))
        made = loader(Dataset.open(folder, reader=reader), 1, PretrainTransform(16))
        after_steps(made)
        reader.close()
        assert front.requests_at_risk >= 8
    assert slowest(made.stage_times.snapshot()) == "read"
