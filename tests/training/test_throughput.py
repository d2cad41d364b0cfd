"""What the log says of how much of the device is used."""

import pytest
import torch

from pipeline.app.bench import train
from training import flops
from training.losses import LOSSES
from training.throughput import Throughput, matrix_product_rate

MODEL = train.DEMO.model


def throughput(**losses: object) -> Throughput:
    return Throughput(MODEL, losses, group_size=4, queue_size=16, device_rate=1e11)


def test_the_share_is_useful_work_over_what_a_matrix_product_reaches() -> None:
    batch = train.drawn_batch(MODEL, 8, 4)
    found = throughput(**{name: loss() for name, loss in LOSSES.items()}).figures([batch], alpha=0.4, step=0, pairs_per_s=10.0)
    a_pair = sum(flops.fused_step(MODEL, flops.texts_of([batch]), 4, 16).values())
    assert found == {"tflops": pytest.approx(10 * a_pair / 1e12), "mfu": pytest.approx(10 * a_pair / 1e11)}


def test_losses_that_are_off_or_without_soft_targets_yet_are_not_counted_as_work() -> None:
    batch = train.drawn_batch(MODEL, 8, 4)
    every = throughput(**{name: loss() for name, loss in LOSSES.items()})
    amounts = [every.figures([batch], 0.4, 0, 1.0)["mfu"], every.figures([batch], 0.0, 0, 1.0)["mfu"]]
    amounts += [throughput(mlm=LOSSES["mlm"]()).figures([batch], 0.0, 0, 1.0)["mfu"]]
    assert amounts == sorted(amounts, reverse=True)
    assert len(set(amounts)) == 3
    assert throughput(captioning=object()).figures([batch], 0.4, 0, 1.0) == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_devices_rate_is_measured_in_the_type_it_computes_in(dtype: torch.dtype) -> None:
    assert 1e8 < matrix_product_rate(torch.device("cpu"), dtype) < 1e15
