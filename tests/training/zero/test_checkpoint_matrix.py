"""A run saved at any ZeRO stage by one or two ranks goes on at any other as if nothing had happened."""

import itertools
import shutil
from pathlib import Path

import many_runs
import pytest
import tiny_run
import torch

from training import checkpoint

STAGES, RANKS = (0, 1, 2, 3), (1, 2)
SAVED, LAST = 2, 6
STATE_OF_RUN = ("step", "position", "adam_step", "queue_position", "skipped_steps", "manifest", "quarantine")
LOSSES, STATE = 1e-6, 1e-5  # relative; four steps of AdamW enlarge what sums in another order round differently


def configuration(folder: Path, dataset: Path, stage: int, **changes: object) -> Path:
    settings = {"zero_stage": stage, "max_steps": LAST, "optimizer": {"warmup_steps": 1, "peak_lr": 1e-3, "final_lr": 1e-4, "max_grad_norm": 5.0}}
    return tiny_run.configuration(folder, dataset, **(settings | changes))


def state_of(run: Path) -> dict[str, torch.Tensor]:
    """Every number of the last checkpoint but the attention key biases, whose gradients are rounding errors: in exact arithmetic they are zero."""
    saved = checkpoint.read(str(run / "train" / "checkpoints"))
    tensors = {f"{kind}/{name}": tensor for kind in ("student", "teacher", "optimizer", "queue") for name, tensor in saved.tensors(kind).items()}
    return {name: without_key(name, tensor) for name, tensor in tensors.items() if not name.endswith("key.bias")}


def without_key(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Query, key and value of the image encoder have one bias together."""
    return torch.cat([tensor.chunk(3)[0], tensor.chunk(3)[2]]) if name.endswith("qkv.bias") else tensor


def assert_same_state(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], case: object) -> None:
    assert found.keys() == expected.keys(), case
    scale = max(float(tensor.double().norm()) for name, tensor in expected.items() if name.startswith("student/"))
    for name, tensor in expected.items():
        difference = float((found[name].double() - tensor.double()).norm())
        assert difference <= STATE * max(float(tensor.double().norm()), 1e-3 * scale), (case, name, difference)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_run_saved_at_any_stage_and_world_size_goes_on_at_any_other(dataset: Path, tmp_path: Path) -> None:
    reference = tmp_path / "reference"
    many_runs.train_all([configuration(reference, dataset, stage=1)], tmp_path / "reference-out", ranks=1)
    for ranks in RANKS:
        saved = [configuration(tmp_path / f"saved-{stage}-{ranks}", dataset, stage, save_every_steps=SAVED, keep_every_steps=SAVED) for stage in STAGES]
        assert all(done["steps"] == LAST for done in many_runs.train_all(saved, tmp_path / f"saved-out-{ranks}", ranks))
    cases = list(itertools.product(STAGES, RANKS, STAGES, RANKS))
    for ranks in RANKS:
        configs = []
        for stage, saved_ranks, to_stage, _ in (case for case in cases if case[3] == ranks):
            run = tmp_path / f"from-{stage}-{saved_ranks}-to-{to_stage}-{ranks}"
            copy_first_checkpoint(tmp_path / f"saved-{stage}-{saved_ranks}", run)
            configs.append(configuration(run, dataset, to_stage))
        many_runs.train_all(configs, tmp_path / f"resumed-out-{ranks}", ranks)
    expected, losses = state_of(reference), tiny_run.metrics(reference)
    for case in cases:
        run = tmp_path / "from-{}-{}-to-{}-{}".format(*case)
        resumed = tiny_run.metrics(run)
        assert [record["step"] for record in resumed] == list(range(SAVED + 1, LAST + 1)), case
        for one, other in zip(resumed, losses[SAVED:], strict=True):
            assert one["loss/total"] == pytest.approx(other["loss/total"], rel=LOSSES), (case, one["step"])
            assert (one["lr"], one["alpha"], one["epoch"]) == (other["lr"], other["alpha"], other["epoch"]), case
        assert_same_state(state_of(run), expected, case)
        state = checkpoint.read(str(run / "train" / "checkpoints")).state
        other_state = checkpoint.read(str(reference / "train" / "checkpoints")).state
        assert {name: state[name] for name in STATE_OF_RUN} == {name: other_state[name] for name in STATE_OF_RUN}, case


def copy_first_checkpoint(saved: Path, run: Path) -> None:
    """As the saving run stood after `SAVED` steps."""
    name = checkpoint.name_of(SAVED)
    shutil.copytree(saved / "train" / "checkpoints" / name, run / "train" / "checkpoints" / name)
    (run / "train" / "checkpoints" / "latest").write_text(name)
