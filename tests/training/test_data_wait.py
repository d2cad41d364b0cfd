"""Waiting for data: what is counted over which steps, and whom the warning names."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny_run

from shards.manifest import publish
from shards.stage_times import StageTimes
from shards.writer import SampleToWrite, write_shard
from training.data_wait import DataWait, WaitFigures, slowest_rank, warning


def recorded(waits: list[float], window_steps: int, read_s: float = 0.0, between_s: float = 0.0) -> WaitFigures:
    """Steps of one second each, in each of which the workers read for `read_s`, and for `between_s` before it begins."""
    times = StageTimes()
    data_wait = DataWait(times, window_steps)
    for wait in waits:
        times.add("read", between_s)
        data_wait.begin()
        times.add("read", read_s)
        times.add("decode", 0.25)
        data_wait.record(wait, 1.0)
    return data_wait.figures()


def test_the_start_is_not_counted_and_old_steps_leave_the_window() -> None:
    figures = recorded([60.0, 9.0, 0.1, 0.2, 0.3], window_steps=3, read_s=2.0)
    assert figures.steps == 3
    assert (figures.wait_p50_s, figures.wait_share) == pytest.approx((0.2, 0.2))
    assert figures.wait_p99_s == pytest.approx(np.percentile([0.1, 0.2, 0.3], 99))
    assert (figures.busy_read, figures.busy_decode, figures.busy_transform, figures.busy_collate) == pytest.approx((2.0, 0.25, 0.0, 0.0))


def test_what_workers_do_while_a_checkpoint_is_written_is_not_counted() -> None:
    alone = recorded([0.1] * 5, window_steps=3, read_s=0.5)
    assert recorded([0.1] * 5, window_steps=3, read_s=0.5, between_s=30.0) == alone
    assert alone.busy_read == pytest.approx(0.5)


@pytest.mark.parametrize("steps", [0, 1])
def test_before_the_second_step_there_is_nothing_to_tell(steps: int) -> None:
    assert recorded([1.0] * steps, window_steps=3).steps == 0
    assert warning(recorded([1.0] * steps, window_steps=3), 0, 0.1) is None


def test_the_warning_names_rank_share_stage_and_what_helps() -> None:
    waiting = recorded([0.0, 0.5, 0.5], window_steps=2, read_s=0.75)
    ranks = [recorded([0.0, 0.1, 0.1], window_steps=2), waiting]
    assert slowest_rank(ranks) == 1
    sentence = warning(waiting, 1, 0.1)
    assert sentence is not None
    assert sentence.startswith("rank 1 waits for data 50 % of the time (2 steps, p50 0.5 s, p99 0.5 s; training.data_wait_warn_share is 0.1)")
    assert "the slow stage is reading (storage, node cache, checksum), 75 % of the workers' busy time: more training.num_workers hide" in sentence
    assert warning(waiting, 1, 0.5) is None


def write_large_pictures(folder: Path) -> None:
    """Pictures of 2 megapixels, for a model that takes 32 x 32: decoding is all the work there is."""
    noise = np.random.default_rng(0).integers(0, 256, (1000, 2000, 3), dtype=np.uint8)
    data = cv2.imencode(".jpg", noise)[1].tobytes()
    entry = write_shard(str(folder / "00000.tar"), [SampleToWrite(f"{number:06d}", data, "jpg", ("a dog",)) for number in range(32)], source="test")
    publish(str(folder), [entry], outcomes={"success": 32}, config={})


def test_a_run_that_waits_for_its_decoder_says_so_once_a_window(tmp_path: Path) -> None:
    write_large_pictures(tmp_path / "data")
    config = tiny_run.configuration(tmp_path, tmp_path / "data", log_every_steps=1, data_wait_window_steps=4, max_steps=8)
    done = tiny_run.train(config)
    assert done.returncode == 0, done.stderr
    log = (tmp_path / "log.txt").read_text()
    warnings = [line for line in log.splitlines() if "waits for data" in line]
    assert len(warnings) == 1
    assert "step 5: rank 0 waits for data" in warnings[0]
    assert "the slow stage is decoding pictures" in warnings[0]
    last = json.loads((tmp_path / "train" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["data/wait_share"] > 0.5
    assert last["data/wait_p50_s"] <= last["data/wait_p99_s"]
    assert last["data/busy_decode"] > last["data/busy_read"]
    assert [rank["wait_share"] for rank in last["ranks"]] == [last["data/wait_share"]]


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_healthy_run_warns_of_nothing_and_tells_of_each_rank(tmp_path: Path, processes: int) -> None:
    tiny_run.write_dataset(tmp_path / "data")
    config = tiny_run.configuration(
        tmp_path,
        tmp_path / "data",
        log_every_steps=1,
        data_wait_window_steps=6,
        data_wait_warn_share=0.9,
        max_steps=14,
        model={"text_layers": 2, "vision_depth": 2},
    )
    assert tiny_run.train(config, processes).returncode == 0
    assert "waits for data" not in (tmp_path / "log.txt").read_text()
    last = json.loads((tmp_path / "train" / "metrics.jsonl").read_text().splitlines()[-1])
    assert [rank["steps"] for rank in last["ranks"]] == [6] * processes
