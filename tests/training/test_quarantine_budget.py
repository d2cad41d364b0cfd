"""A run does without a few damaged samples, says which, and ends with exit code 3 when they are too many."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_run

from pipeline.core.errors import BelowFloor, DataError
from shards import index, layout
from shards.order.blend import parse_blend
from shards.order.mixing import MixedDataset, open_blend
from training import checkpoint
from training.quarantine_budget import QuarantineBudget, check_shards


def entry(sample: int, samples: int = 1, reason: str = "row 1: torn; read it again") -> dict[str, Any]:
    return {"sample": sample, "samples": samples, "key": "k", "reason": reason, "epoch": 0, "position": 0, "replaced": 1}


def test_a_budget_is_a_share_of_the_samples_and_its_line_names_the_worst_shards() -> None:
    budget = QuarantineBudget(0.1, 100, lambda sample: f"/data/{sample // 20:05d}.tar row {sample % 20}")
    budget.check([entry(number) for number in range(10)])
    line = (
        r"^training: 24 of 100 samples \(24 %\) are in quarantine, training\.quarantine_budget allows 10 %; worst: /data/00002\.tar \(20: missing\); "
        r"/data/00000\.tar \(3: row 1: torn\); /data/00001\.tar \(1: row 1: torn\); [^\n;]*$"
    )
    with pytest.raises(BelowFloor, match=line) as raised:
        budget.check([entry(0), entry(3), entry(5), entry(39), entry(40, 20, "/data/00002.tar: missing"), entry(44)])
    assert raised.value.exit_code == 3


def test_lost_shards_are_named_before_the_first_step(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("one", "two"):
        tiny_run.write_dataset(tmp_path / name)
    (tmp_path / "two" / "00001.tar").unlink()
    blend = open_blend(parse_blend({"blend": [{"dataset": str(tmp_path / name), "weight": 1} for name in ("one", "two")]}))
    assert isinstance(blend, MixedDataset)
    check_shards(blend, QuarantineBudget(0.2, blend.num_samples, blend.name_of))
    assert "lost" in caplog.text
    assert "two/00001.tar: missing" in caplog.text
    with pytest.raises(BelowFloor, match=r"32 of 192 samples[^\n]*two/00001\.tar"):
        check_shards(blend, QuarantineBudget(0.1, blend.num_samples, blend.name_of))


def test_a_dataset_of_a_blend_that_is_lost_as_a_whole_is_refused_by_name_whatever_the_budget(tmp_path: Path) -> None:
    for name in ("web", "small"):
        tiny_run.write_dataset(tmp_path / name)
    for path in (tmp_path / "small").glob("*.tar"):
        path.unlink()
    blend = open_blend(parse_blend({"blend": [{"dataset": str(tmp_path / name), "weight": 1} for name in ("web", "small")]}))
    with pytest.raises(DataError, match=r"/small: every shard of the blend's dataset 'small' is lost \(\S*small/00000\.tar: missing\); [^\n]*out of the blend"):
        check_shards(blend, QuarantineBudget(1.0, blend.num_samples, blend.name_of))


def damaged_dataset(folder: Path) -> Path:
    """96 samples in 3 shards; two samples have a flipped byte."""
    tiny_run.write_dataset(folder)
    for shard, row in (("00000", 5), ("00002", 20)):
        path = folder / f"{shard}.tar"
        data = bytearray(path.read_bytes())
        data[int(index.read_index(layout.index_path(str(folder), shard)).offset[row]) + 700] ^= 1
        path.write_bytes(bytes(data))
    return folder


def quarantine_of(run: Path) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = checkpoint.read(str(run / "train" / "checkpoints")).state["quarantine"]
    assert json.loads((run / "train" / "quarantine.json").read_text())["entries"] == entries
    return entries


def test_more_damage_than_the_budget_ends_the_run_with_three_and_a_larger_one_goes_on(tmp_path: Path) -> None:
    data = damaged_dataset(tmp_path / "data")
    settings = {"max_steps": 20, "quarantine_budget": 0.015}
    ended = tiny_run.train(tiny_run.configuration(tmp_path / "run", data, **settings))
    assert ended.returncode == 3, ended.stderr[-2000:]
    (line,) = [line for line in ended.stderr.splitlines() if "in quarantine" in line]
    assert "2 of 96 samples (2.08 %)" in line
    assert f"{data}/00000.tar (1: row 5: checksum differs from the index)" in line
    step = checkpoint.read(str(tmp_path / "run" / "train" / "checkpoints")).state["step"]
    assert 0 < step < 20
    again = tiny_run.train(tiny_run.configuration(tmp_path / "run", data, **settings))
    assert again.returncode == 3
    went_on = tiny_run.train(tiny_run.configuration(tmp_path / "run", data, **{**settings, "quarantine_budget": 0.05}))
    assert went_on.returncode == 0, went_on.stderr[-2000:]
    assert {one["sample"] for one in quarantine_of(tmp_path / "run")} == {5, 84}


@pytest.mark.slow
def test_two_ranks_and_one_that_goes_on_from_their_checkpoint_count_as_one_rank_alone(tmp_path: Path) -> None:
    data = damaged_dataset(tmp_path / "data")
    (data / "00001.tar").unlink()
    alone, world = tmp_path / "alone", tmp_path / "world"
    for folder, ranks in ((alone, 1), (world, 2)):
        done = tiny_run.train(tiny_run.configuration(folder, data, max_steps=20, save_every_steps=10, keep_last=9, quarantine_budget=0.5), ranks)
        assert done.returncode == 0, done.stderr[-2000:]
    expected = quarantine_of(alone)
    assert quarantine_of(world) == expected
    assert {(one["sample"], one["samples"]) for one in expected} == {(5, 1), (32, 32), (84, 1)}
    assert sum(one["replaced"] for one in expected) > 20
    (world / "stages" / "train.json").unlink()  # as if it had been interrupted after step 10
    shutil.rmtree(world / "train" / "checkpoints" / checkpoint.name_of(20))
    (world / "train" / "checkpoints" / "latest").write_text(checkpoint.name_of(10))
    assert checkpoint.read(str(world / "train" / "checkpoints")).state["quarantine"]
    went_on = tiny_run.train(tiny_run.configuration(world, data, max_steps=20, save_every_steps=10, keep_last=9, quarantine_budget=0.5))
    assert went_on.returncode == 0, went_on.stderr[-2000:]
    assert quarantine_of(world) == expected


@pytest.mark.slow
def test_two_ranks_without_too_much_of_their_dataset_end_with_three_and_one_line(tmp_path: Path) -> None:
    tiny_run.write_dataset(tmp_path / "data")
    (tmp_path / "data" / "00001.tar").unlink()
    ended = tiny_run.train(tiny_run.configuration(tmp_path / "run", tmp_path / "data", quarantine_budget=0.1), 2)
    assert ended.returncode == 3, ended.stderr[-2000:]
    assert len([line for line in ended.stderr.splitlines() if "albef: " in line]) == 1
    assert "Traceback" not in ended.stderr
