"""Compiled blocks compute what eager ones do, and another number of tokens compiles nothing anew."""

import copy
import functools
from pathlib import Path

import pytest
import tiny_run
import torch
from tiny_albef import TINY, make_batch, models, pretrainer, ragged_batch
from torch import nn

from pipeline.core.errors import ConfigError
from training.compilation import compile_blocks, require_compiler
from training.feature_queue import FeatureQueue


@pytest.mark.slow
def test_a_compiled_step_equals_the_eager_one(monkeypatch: pytest.MonkeyPatch) -> None:
    # Graphs as torch.compile cuts them, run as they are: about twenty of them would keep the C++ compiler busy for minutes.
    monkeypatch.setattr(nn.Module, "compile", functools.partialmethod(nn.Module.compile, backend="aot_eager"))
    student, teacher = models()
    eager = copy.deepcopy(student), copy.deepcopy(teacher)
    compile_blocks(student)
    compile_blocks(teacher)
    queue = FeatureQueue(10, TINY.embed_dim)
    for batch in (ragged_batch(12, 6), make_batch(12, 6, length=9)):
        found, wanted = (pretrainer(pair[0], 6)(batch, pair[1], queue, 0.4).total for pair in ((student, teacher), eager))
        assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
        gradients = [torch.autograd.grad(total, list(model.parameters())) for total, model in ((found, student), (wanted, eager[0]))]
        whole = torch.cat([gradient.flatten() for gradient in gradients[1]]).norm()
        for compiled, plain in zip(*gradients, strict=True):
            assert (compiled - plain).norm() <= 1e-4 * torch.maximum(plain.norm(), 1e-2 * whole)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs > 0
    pretrainer(student, 6)(make_batch(12, 6, seed=1, length=10), teacher, queue, 0.4).total.backward()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs


def test_a_cpu_without_a_compiler_is_one_line_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match=r"training.compile is true, but there is no C\+\+ compiler no-such-compiler"):
        require_compiler(torch.device("cpu"))
    require_compiler(torch.device("cuda"))  # triton's own affair
    tiny_run.write_dataset(tmp_path / "data", samples=32)
    done = tiny_run.train(tiny_run.configuration(tmp_path / "run", tmp_path / "data", compile=True))
    assert done.returncode == 2, done.stderr
    assert "no C++ compiler" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "train" / "metrics.jsonl").exists()
