"""The teacher kept in slices is the plain moving average of the student, to the last bit, under every ZeRO stage."""

import itertools
import json
from pathlib import Path

import many_runs
import pytest
import teacher_run
import tiny_run
import torch
from ranks_of_program import run_ranks

from training import checkpoint

MOMENTUM, STEPS = 0.9, 5  # tiny_run's
CASES = list(itertools.product((0, 1, 2, 3), ("fp32", "bf16")))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("ranks", [1, 2])
def test_the_teacher_is_the_plain_average_and_its_compute_copy_that_average_rounded(dataset: Path, tmp_path: Path, ranks: int) -> None:
    """Of a model with tied weights, two groups of decay, a parameter of one element and a vocabulary that two ranks cannot share evenly."""
    runs = [tmp_path / f"{stage}-{precision}" for stage, precision in CASES]
    configs = [
        tiny_run.configuration(run, dataset, zero_stage=stage, precision=precision, save_every_steps=1, keep_last=STEPS)
        for run, (stage, precision) in zip(runs, CASES, strict=True)
    ]
    code, said = run_ranks(teacher_run.__file__, lambda rank: [tmp_path / f"errors-{rank}.json", *configs], tmp_path, ranks)
    assert code == 0, said
    for rank in range(ranks):
        assert json.loads((tmp_path / f"errors-{rank}.json").read_text()) == [0.0] * len(CASES)
    for run in runs:
        saved = [checkpoint.read(str(run / "train" / "checkpoints" / checkpoint.name_of(step))) for step in range(1, STEPS + 1)]
        teacher = saved[0].tensors("teacher")
        for one in saved[1:]:
            student, kept = one.tensors("student"), one.tensors("teacher")
            teacher = {name: torch.lerp(teacher[name], student[name], 1 - MOMENTUM) for name in student}
            assert all(torch.equal(teacher[name], kept[name]) for name in student), (run.name, one.step)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_accumulating_1_2_or_4_micro_batches_gives_the_same_losses_and_weights(dataset: Path, tmp_path: Path) -> None:
    cases = list(itertools.product((0, 1, 2, 3), (16, 8, 4)))  # pairs a pass, of 16 a step
    runs = [tmp_path / f"{stage}-{size}" for stage, size in cases]
    configs = [tiny_run.configuration(run, dataset, zero_stage=stage, micro_batch_size=size) for run, (stage, size) in zip(runs, cases, strict=True)]
    many_runs.train_all(configs, tmp_path / "out", ranks=1)
    expected = checkpoint.read(str(runs[0] / "train" / "checkpoints")).tensors("student")
    for run in runs[1:]:
        for one, other in zip(tiny_run.metrics(run), tiny_run.metrics(runs[0]), strict=True):
            assert one["loss/total"] == pytest.approx(other["loss/total"], rel=1e-6), (run.name, one["step"])
        for name, tensor in checkpoint.read(str(run / "train" / "checkpoints")).tensors("student").items():
            if not name.endswith(("key.bias", "qkv.bias")):  # in exact arithmetic those of keys have no gradient
                assert torch.allclose(tensor, expected[name], rtol=1e-6, atol=2e-6), (run.name, name)
