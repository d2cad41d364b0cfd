"""Steps that are skipped for a NaN: named, counted, without effect on teacher and queue, and, where asked for, gone back on."""

import json
from pathlib import Path

import poisoned_run
import pytest
import tiny_run
import torch
from ranks_of_program import run_ranks

from training import checkpoint


def train(config: Path, rank: int, batches: range, ranks: int = 1, poison: str = "nan") -> tuple[int, str]:
    """Exit code, and what rank 0 said; of these global batches `rank` meets a poisoned share."""
    code, said = run_ranks(poisoned_run.__file__, lambda _: [config, rank, poison, *batches], config.parent / "said", ranks)
    return code, said[0]


def checkpoint_of(run: Path, step: int) -> checkpoint.Checkpoint:
    return checkpoint.read(str(run / "train" / "checkpoints" / checkpoint.name_of(step)))


@pytest.mark.parametrize(("ranks", "zero_stage"), [(1, 0), (1, 1), pytest.param(2, 1, marks=pytest.mark.slow), pytest.param(2, 3, marks=pytest.mark.slow)])
def test_a_nan_in_one_sample_is_named_counted_and_changes_nothing(dataset: Path, tmp_path: Path, ranks: int, zero_stage: int) -> None:
    config = tiny_run.configuration(tmp_path, dataset, zero_stage=zero_stage, save_every_steps=1, keep_last=5)
    code, errors = train(config, ranks - 1, range(2, 3), ranks)
    assert code == 0, errors
    (skipped,) = [json.loads(line) for line in (tmp_path / "train" / "skipped_steps.jsonl").read_text().splitlines()]
    assert skipped["step"] == 3
    (ill,) = skipped["micro_batches"]
    assert (ill["rank"], set(ill["losses"])) == (ranks - 1, {"itc", "itm", "mlm"})
    (sample,) = ill["samples"]
    (line,) = [line for line in errors.splitlines() if "step 3 skipped" in line]
    assert f"sample {sample['key']} on rank {ranks - 1} (its picture is not finite)" in line.replace("\n", "")
    records = tiny_run.metrics(tmp_path)
    assert [record["skipped_steps"] for record in records] == [0, 0, 1, 1, 1]
    assert all(torch.isfinite(torch.tensor(record["loss/total"])) for record in records if record["step"] != 3)
    before, after = checkpoint_of(tmp_path, 2), checkpoint_of(tmp_path, 3)
    for kind in ("student", "teacher", "optimizer", "queue"):
        was, now = before.tensors(kind), after.tensors(kind)
        assert all(torch.equal(was[name], now[name]) for name in was), kind
    assert after.state["queue_position"] == before.state["queue_position"]
    assert after.state["adam_step"] == before.state["adam_step"] == 2
    assert not torch.equal(checkpoint_of(tmp_path, 4).tensors("teacher")["itm_head.weight"], after.tensors("teacher")["itm_head.weight"])


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_ten_in_a_row_stop_the_run_with_4_and_a_report_and_it_can_go_on(dataset: Path, tmp_path: Path, ranks: int) -> None:
    config = tiny_run.configuration(tmp_path, dataset, max_steps=20)
    code, errors = train(config, ranks - 1, range(2, 99), ranks)
    assert code == 4, errors
    assert "training stopped at step 12 of 20" in errors
    assert "10 steps, 3 to 12, skipped for a non-finite loss or gradient" in errors
    assert f"rank {ranks - 1} in 10" in (tmp_path / "train" / "skipped_steps.md").read_text()
    code, errors = train(config, 0, range(0), ranks)
    assert code == 0, errors
    last = checkpoint.read(str(tmp_path / "train" / "checkpoints"))
    assert (last.step, last.state["skipped_steps"], last.state["skipped_at"]) == (20, 10, [])


def test_a_run_that_may_goes_back_and_leaves_the_poisoned_batches_out(dataset: Path, tmp_path: Path) -> None:
    changes: dict[str, object] = {"max_steps": 6, "save_every_steps": 2, "max_skipped_in_a_row": 2, "roll_back": "non_finite", "compare_ranks_every_steps": 1}
    config = tiny_run.configuration(tmp_path, dataset, **changes)
    code, errors = train(config, 0, range(3, 5))
    assert code == 0, errors
    assert "roll-back 1 of 3 to step 2, leaving out global batches 3 of epoch 0, 4 of epoch 0" in errors.replace("\n", " ")
    records = tiny_run.metrics(tmp_path)
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert all(record["skipped_steps"] == 0 for record in records)
    last = checkpoint.read(str(tmp_path / "train" / "checkpoints"))
    assert (last.state["position"]["epoch"], last.state["position"]["step"]) == (0, 8), "six batches taken, two left out"
    assert [place["step"] for place in last.state["roll_back"]["left_out"]] == [3, 4]


def test_a_roll_back_goes_past_a_checkpoint_that_was_damaged(dataset: Path, tmp_path: Path) -> None:
    changes: dict[str, object] = {"max_steps": 6, "save_every_steps": 2, "keep_last": 5, "max_skipped_in_a_row": 1, "roll_back": "non_finite"}
    code, errors = train(tiny_run.configuration(tmp_path, dataset, **changes), 0, range(5, 6), poison="nan_and_damage")
    assert code == 0, errors
    said = errors.replace("\n", " ")
    assert "roll-back 1 of 3 to step 4, leaving out global batch 5 of epoch 0" in said
    assert "checkpoint step-0000004 is damaged" in said
    records = tiny_run.metrics(tmp_path)
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert all(record["skipped_steps"] == 0 for record in records)
    last = checkpoint.read(str(tmp_path / "train" / "checkpoints"))
    assert last.state["position"]["step"] == 7, "six batches taken, one left out"
    checkpoint_of(tmp_path, 4).verify()  # written anew


def test_a_second_bad_batch_behind_those_left_out_is_left_out_as_well(dataset: Path, tmp_path: Path) -> None:
    changes: dict[str, object] = {"max_steps": 6, "save_every_steps": 2, "max_skipped_in_a_row": 1, "roll_back": "non_finite"}
    code, errors = train(tiny_run.configuration(tmp_path, dataset, **changes), 0, range(3, 5))
    assert code == 0, errors
    last = checkpoint.read(str(tmp_path / "train" / "checkpoints"))
    assert [place["step"] for place in last.state["roll_back"]["left_out"]] == [3, 4]
    assert len(last.state["roll_back"]["made"]) == 2


def test_enough_skipped_steps_end_a_run_at_its_last_step_too(dataset: Path, tmp_path: Path) -> None:
    code, errors = train(tiny_run.configuration(tmp_path, dataset, max_steps=3, max_skipped_in_a_row=3), 0, range(3))
    assert code == 4, errors
    assert "training stopped at step 3 of 3: 3 steps, 1 to 3, skipped" in errors


def test_skipped_steps_in_a_row_are_counted_over_a_restart(dataset: Path, tmp_path: Path) -> None:
    """Steps 2 to 5 are skipped; the run goes on from the checkpoint of step 4, as after a kill within step 5."""
    config = tiny_run.configuration(tmp_path, dataset, max_steps=8, max_skipped_in_a_row=4, save_every_steps=2, keep_last=5)
    assert train(config, 0, range(1, 9))[0] == 4
    (tmp_path / "train" / "checkpoints" / "latest").write_text(checkpoint.name_of(4))
    assert len(checkpoint_of(tmp_path, 4).state["skipped_at"]) == 3
    code, errors = train(config, 0, range(1, 9))
    assert code == 4, errors
    assert "training stopped at step 5 of 8" in errors


@pytest.mark.slow
def test_a_gradient_that_jumps_is_gone_back_on_without_its_batch(dataset: Path, tmp_path: Path) -> None:
    optimizer = {"warmup_steps": 1, "peak_lr": 2e-3, "final_lr": 2e-3}
    config = tiny_run.configuration(tmp_path, dataset, max_steps=90, save_every_steps=10, roll_back="spikes", optimizer=optimizer)
    code, errors = train(config, 0, range(82, 83), poison="nonsense")
    assert code == 0, errors
    assert "step 83: grad_norm is" in errors
    assert "roll-back 1 of 3 to step 80, leaving out global batch 1 of epoch 9" in errors.replace("\n", " ")
    records = tiny_run.metrics(tmp_path)
    assert [record["step"] for record in records] == list(range(1, 91))
    assert all(record["skipped_steps"] == 0 for record in records)
    assert checkpoint.read(str(tmp_path / "train" / "checkpoints")).state["position"]["step"] == 1, "91 batches of 9 an epoch, one left out"
