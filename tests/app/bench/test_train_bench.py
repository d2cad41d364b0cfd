"""`albef bench train` in small: what both ways compute, that memory and rows are what they are called. How fast, no test says."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from pipeline.app import cli
from pipeline.app.bench import engine_steps, train
from pipeline.app.bench.plain_step import plain_losses
from pipeline.core.errors import ConfigError
from training.model_config import ModelConfig
from training.step import Negatives

TINY = train.Sizes(
    ModelConfig(
        image_size=32, vision_width=32, vision_depth=1, vision_heads=2, text_hidden=24, text_heads=2, text_layers=1, fusion_layers=2, text_intermediate=48,
        vocab_size=300, max_positions=32, hidden_dropout=0.0, attention_dropout=0.0, embed_dim=8,
    ),
    pairs=6, queue_size=10,
)  # fmt: skip


def test_about_half_of_a_batchs_tokens_are_padding_and_all_of_it_repeats_by_its_seed() -> None:
    batch, again = (train.drawn_batch(train.DEMO.model, 256, 64) for _ in range(2))
    assert batch.input_ids.shape == (256, 30)
    assert 0.4 < 1 - batch.attention_mask.float().mean().item() < 0.55
    assert 0.1 < len(batch.mlm_positions) / batch.attention_mask.sum().item() < 0.2
    assert torch.equal(batch.images, again.images)
    assert torch.equal(batch.masked_ids, again.masked_ids)


def test_both_ways_step_with_the_same_losses() -> None:
    steps, batch = train.Steps(TINY, 6, torch.device("cpu")), train.drawn_batch(TINY.model, 6, 6)
    negatives = Negatives(torch.tensor([1, 2, 3, 4, 5, 0]), torch.tensor([3, 3, 0, 1, 2, 4]))
    fused = steps.pretrainer(batch, steps.teacher, steps.queue, train.ALPHA, negatives=negatives).losses
    plain = plain_losses(steps.student, steps.teacher, steps.queue, batch, train.ALPHA, negatives).losses
    for name, loss in plain.items():
        assert fused[name].item() == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize("way", ["fused", "plain"])
def test_each_way_moves_student_teacher_and_queue(way: str) -> None:
    steps, batch = train.Steps(TINY, 6, torch.device("cpu")), train.drawn_batch(TINY.model, 6, 6)
    before = {name: value.clone() for name, value in steps.student.state_dict().items()}
    queue = steps.queue.image.clone()
    getattr(steps, way)(batch)
    assert all((value != before[name]).any() for name, value in steps.student.state_dict().items() if not name.endswith("key.bias"))
    assert any((value != before[name]).any() for name, value in steps.teacher.state_dict().items())
    assert ((steps.queue.image != queue).any(dim=1) == (torch.arange(10) < 6)).all()


def test_both_ways_step_in_bf16_with_losses_close_to_those_of_fp32() -> None:
    exact, rough = (train.Steps(TINY, 6, torch.device("cpu"), precision) for precision in (torch.float32, torch.bfloat16))
    batch, negatives = train.drawn_batch(TINY.model, 6, 6), Negatives(torch.tensor([1, 2, 3, 4, 5, 0]), torch.tensor([3, 3, 0, 1, 2, 4]))
    wanted = plain_losses(exact.student, exact.teacher, exact.queue, batch, train.ALPHA, negatives).losses
    with torch.autocast("cpu", torch.bfloat16):
        plain = plain_losses(rough.student, rough.teacher, rough.queue, batch, train.ALPHA, negatives)
    assert plain.teacher_image_feat.dtype == plain.teacher_text_feat.dtype == torch.float32
    for name, loss in wanted.items():
        assert plain.losses[name].item() == pytest.approx(loss.item(), rel=0.02)
    for way in (rough.fused, rough.plain):
        way(batch)
        assert all(parameter.grad.isfinite().all() for parameter in rough.student.parameters())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_speed_and_memory_stand_beside_the_plain_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "BASE", replace(TINY, queue_size=128))
    monkeypatch.setattr(train, "GPU_BATCHES", (train.GROUP_SIZE,))
    rows = {row.case: row for row in train.run(["gpu"], train.Scale(1))}
    for case in ("gpu-64", "gpu-64-compiled"):
        assert rows[case].peer_name == rows[f"{case}-memory"].peer_name == train.PLAIN
        assert rows[f"{case}-mfu"].peer is None


def test_a_case_gives_a_row_for_speed_and_one_for_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(train.CASES, "demo", partial(train.whole_steps, "demo", replace(TINY)))
    written = tmp_path / "rows.json"
    result = CliRunner().invoke(cli.bench_app, ["train", "--cases", "demo,base-flops", "--rounds", "1", "--json", str(written)])
    assert result.exit_code == 0, result.output
    rows = {row["case"]: row for row in json.loads(written.read_text())["rows"]}
    assert set(rows) == {"demo", "demo-memory", "base-flops-padded", "base-flops-packed"}
    assert rows["demo"]["unit"] == "pairs/CPU-s"
    assert rows["demo-memory"]["ratio"] > 1, "the fused step holds less"
    assert rows["base-flops-padded"]["ours"] <= 260
    assert rows["base-flops-packed"]["ours"] <= 235
    assert rows["base-flops-packed"]["peer"] == 300


@pytest.mark.slow
def test_the_engines_case_has_a_row_for_cpu_time_for_wall_time_and_for_what_it_costs_more() -> None:
    speed, wall, over = engine_steps.overhead("engine", TINY, rounds=2, steps=2)
    assert (speed.case, wall.case, over.case) == ("engine", "engine-wall", "engine-overhead")
    assert speed.peer_name == wall.peer_name == "the bare fused step"
    assert min(speed.ours, speed.peer or 0, wall.ours, wall.peer or 0) > 0
    low, high = (float(one) for one in over.note.rpartition("median ")[2].split(" to "))
    assert low <= over.ours <= high
    assert over.ours > 0, "two steps with a checkpoint are dearer than two steps"
    assert speed.ratio is not None
    assert speed.ratio < 1


def test_without_a_gpu_its_case_is_not_among_the_default_ones_and_is_refused_before_anything_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setitem(train.CASES, "contrast", lambda scale: pytest.fail("measured before the mistake was told"))
    assert "gpu" not in train.default_cases()
    assert "engine" not in train.default_cases(), "takes an hour"
    with pytest.raises(ConfigError, match="no CUDA device on this machine; run it on one that has a GPU, or take others: --cases base,small"):
        train.run(["contrast", "gpu"], train.Scale(1))
    with pytest.raises(ConfigError, match="no such case"):
        train.run(["speed"], train.Scale(1))
