"""The profiler sees the steps of its window and no other, whatever the run was resumed from."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from torch.profiler import record_function

from training.hooks.profiler import Profiler
from training.loop import StepDone

CPU = torch.device("cpu")


def take(profiler: Profiler, first: int, last: int, device: torch.device = CPU) -> None:
    for step in range(first, last + 1):
        with record_function("albef/forward"), record_function(f"step {step}"):
            torch.ones(64, 64, device=device) @ torch.ones(64, 64, device=device)
        profiler.after_step(StepDone(step, applied=True, losses={}, micro_batches=[], data_wait_s=0.0, step_s=0.1))


def steps_in(trace: Path) -> list[int]:
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    return sorted(int(event["name"].split()[1]) for event in events if event.get("cat") == "user_annotation" and event["name"].startswith("step "))


def test_the_trace_holds_the_steps_of_the_window_and_the_table_their_operations_and_our_ranges(tmp_path: Path) -> None:
    profiler = Profiler(tmp_path, 0, CPU, first_step=3, steps=2)
    take(profiler, 1, 6)
    profiler.close()
    assert steps_in(tmp_path / "rank-0-step-3.json.gz") == [3, 4]
    table = (tmp_path / "table.txt").read_text()
    operations, ranges = table.split("Our ranges")
    assert "aten::mm" in operations
    assert "aten::mm" not in ranges
    (line,) = [line for line in ranges.splitlines() if "albef/forward" in line]
    assert line.split()[1] == "2", "calls, one a step"
    assert float(line.split()[2]) > 0


def test_the_first_step_of_all_can_be_profiled(tmp_path: Path) -> None:
    take(Profiler(tmp_path, 0, CPU, first_step=1, steps=1), 1, 2)
    assert steps_in(tmp_path / "rank-0-step-1.json.gz") == [1]


def test_a_run_resumed_inside_the_window_profiles_the_rest_of_it(tmp_path: Path) -> None:
    take(Profiler(tmp_path, 0, CPU, first_step=3, steps=3, steps_taken=4), 5, 7)
    assert steps_in(tmp_path / "rank-0-step-5.json.gz") == [5]


def test_a_run_resumed_after_the_window_says_so_and_writes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    profiler = Profiler(tmp_path / "profile", 0, CPU, first_step=3, steps=2, steps_taken=4)
    take(profiler, 5, 6)
    profiler.close()
    assert not (tmp_path / "profile").exists()
    assert "step 4 is taken, the window of training.profile ended with step 4" in caplog.text


def test_a_run_that_ends_inside_the_window_leaves_what_it_saw(tmp_path: Path) -> None:
    profiler = Profiler(tmp_path, 0, CPU, first_step=2, steps=100)
    take(profiler, 1, 3)
    profiler.close()
    assert steps_in(tmp_path / "rank-0-step-2.json.gz") == [2, 3]


def test_outside_its_window_torch_records_nothing(tmp_path: Path) -> None:
    profiler = Profiler(tmp_path, 0, CPU, first_step=3, steps=1)
    recording = []
    for step in range(1, 6):
        recording.append(torch.autograd.profiler._is_profiler_enabled)
        take(profiler, step, step)
    assert recording == [False, False, True, False, False]


def test_without_a_gpu_the_missing_memory_snapshot_is_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="training.hooks.profiler")
    take(Profiler(tmp_path, 0, CPU, first_step=1, steps=1, memory_snapshot=True), 1, 1)
    lines = [record.message for record in caplog.records if "snapshot" in record.message]
    assert lines == ["no memory snapshot: training.profile.memory_snapshot needs a CUDA device, this run computes on cpu"]
    assert not list(tmp_path.glob("*.pickle"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_kernels_are_listed_and_the_snapshot_has_the_windows_allocations(tmp_path: Path) -> None:
    take(Profiler(tmp_path, 0, torch.device("cuda"), first_step=2, steps=2, memory_snapshot=True), 1, 4, torch.device("cuda"))
    assert "On the GPU, by own time" in (tmp_path / "table.txt").read_text()
    assert (tmp_path / "rank-0-step-2-memory.pickle").stat().st_size > 0
    assert any(event.get("cat") == "kernel" for event in json.loads(gzip.decompress((tmp_path / "rank-0-step-2.json.gz").read_bytes()))["traceEvents"])
