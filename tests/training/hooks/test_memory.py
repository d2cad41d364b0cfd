"""Memory figures of the log against memory that a test takes."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from training.hooks.memory import GIB, memory_figures

CPU = torch.device("cpu")
SIZE = 256 * 2**20


def test_on_a_cpu_memory_that_is_given_back_leaves_the_peak_behind() -> None:
    before = memory_figures(CPU)
    taken = np.ones(SIZE, dtype=np.uint8)
    during = memory_figures(CPU)
    del taken
    after = memory_figures(CPU)
    assert during["memory/resident_gib"] - before["memory/resident_gib"] == pytest.approx(SIZE / GIB, rel=0.1)
    assert during["memory/resident_gib"] - after["memory/resident_gib"] == pytest.approx(SIZE / GIB, rel=0.1)
    assert after["memory/peak_gib"] >= before["memory/resident_gib"] + 0.9 * SIZE / GIB


def test_the_peak_is_that_of_the_process_itself_not_of_the_one_that_started_it() -> None:
    taken = np.ones(2 * SIZE, dtype=np.uint8)
    code = "import torch; from training.hooks.memory import memory_figures; print(memory_figures(torch.device('cpu'))['memory/peak_gib'])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert float(told) < memory_figures(CPU)["memory/peak_gib"]
    assert len(taken) == 2 * SIZE


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_peak_is_that_since_the_last_call() -> None:
    device = torch.device("cuda")
    memory_figures(device)
    before = memory_figures(device)["memory/allocated_gib"]
    taken = torch.ones(SIZE, dtype=torch.uint8, device=device)
    del taken
    assert memory_figures(device) == pytest.approx({"memory/allocated_gib": before, "memory/peak_gib": before + SIZE / GIB})
    assert memory_figures(device)["memory/peak_gib"] == pytest.approx(before)
