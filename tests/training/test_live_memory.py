"""Bytes of live tensors against tensors whose sizes a test knows."""

import pytest
import torch
from torch import Tensor, nn

from training.live_memory import live_bytes, peak_bytes

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"))]
MILLION = 2**20


def test_the_peak_is_what_tensors_held_at_once_freed_ones_not_counted() -> None:
    def work() -> None:
        first = torch.zeros(1_000_000)
        del first
        second, third = torch.zeros(500_000), torch.zeros(1_000_000)
        del second, third

    assert 6_000_000 <= peak_bytes(work) < 6_100_000


@pytest.mark.parametrize("device", DEVICES)
def test_what_work_leaves_behind_counts_once_and_what_it_freed_not_at_all(device: str) -> None:
    def build() -> list[Tensor]:
        torch.zeros(5 * MILLION, device=device).sum()
        one = torch.zeros(MILLION, device=device)
        return [one, one.view(1024, 1024), one[:7]]  # all share its memory

    built, held = live_bytes(build, device)
    assert len(built) == 3
    assert held == 4 * MILLION


@pytest.mark.parametrize("device", DEVICES)
def test_garbage_in_a_cycle_is_not_live(device: str) -> None:
    def build() -> None:
        cycle: list[object] = [torch.zeros(MILLION, device=device)]
        cycle.append(cycle)

    assert live_bytes(build, device)[1] == 0


@pytest.mark.parametrize("device", DEVICES)
def test_a_trained_layer_holds_weights_gradients_and_two_moments(device: str) -> None:
    def build() -> tuple[nn.Linear, torch.optim.Optimizer]:
        layer = nn.Linear(1024, 1024, device=device)
        optimizer = torch.optim.AdamW(layer.parameters(), foreach=False)
        layer(torch.ones(2, 1024, device=device)).sum().backward()
        optimizer.step()
        return layer, optimizer

    build()  # libraries of the device have workspaces of their own
    _, held = live_bytes(build, device)
    assert held == pytest.approx(4 * 4 * (1024 * 1024 + 1024), rel=0.001)
