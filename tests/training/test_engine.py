"""The training loop as its user starts it: one process, two ranks, interrupted and continued."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_run
import torch

from pipeline.core import storage
from pipeline.core.errors import ConfigError
from training import checkpoint
from training.config import TrainingConfig
from training.resuming import refuse_changed


@pytest.fixture(scope="module")
def uninterrupted(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 5 steps on one rank."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    done = tiny_run.train(tiny_run.configuration(folder, dataset))
    assert done.returncode == 0, done.stderr
    return folder


def assert_same_losses(run: Path, reference: Path, relative: float) -> None:
    ours, theirs = tiny_run.metrics(run), tiny_run.metrics(reference)
    assert [record["step"] for record in ours] == [record["step"] for record in theirs] == [1, 2, 3, 4, 5]
    for one, other in zip(ours, theirs, strict=True):
        for name in ("loss/itc", "loss/itm", "loss/mlm", "loss/total"):
            assert one[name] == pytest.approx(other[name], rel=relative), (one["step"], name)


def test_the_log_names_stage_and_engine(uninterrupted: Path) -> None:
    assert "stage train: DeepSpeed ZeRO-0 fp32, 1 rank(s)" in (uninterrupted / "log.txt").read_text()


def test_a_run_shorter_than_the_interval_of_its_log_still_says_how_it_began_and_ended(uninterrupted: Path) -> None:
    text = (uninterrupted / "log.txt").read_text()
    assert [step for step in range(1, 6) if f" step {step}  total" in text or f"step {step}  itc" in text] == [1, 5]
    assert f"5 of 5 steps taken; checkpoint {uninterrupted / 'train' / 'checkpoints' / 'step-0000005'}" in text
    (line,) = [line for line in text.splitlines() if "dataset " in line and "manifest" in line]
    assert line.endswith(" captions")  # one dataset has no share


def test_a_warm_up_that_the_run_ends_within_is_said_once_in_the_log(dataset: Path, tmp_path: Path) -> None:
    optimizer = {"warmup_steps": 9, "peak_lr": 1e-3, "final_lr": 1e-4}
    assert tiny_run.train(tiny_run.configuration(tmp_path, dataset, max_steps=1, optimizer=optimizer)).returncode == 0
    assert (tmp_path / "log.txt").read_text().count("the warm-up of 9 steps is cut short after 1, where the run ends") == 1


def test_every_step_says_how_much_of_the_device_it_used(uninterrupted: Path) -> None:
    for record in map(json.loads, (uninterrupted / "train" / "metrics.jsonl").read_text().splitlines()):
        assert record["tflops"] > 0
        assert 0 < record["mfu"] < 10, "a share, if of a rate measured beside other work"


def test_accumulating_two_micro_batches_gives_the_losses_of_one(dataset: Path, uninterrupted: Path, tmp_path: Path) -> None:
    assert tiny_run.train(tiny_run.configuration(tmp_path, dataset, micro_batch_size=8)).returncode == 0
    assert_same_losses(tmp_path, uninterrupted, relative=1e-5)


@pytest.mark.slow
def test_two_ranks_give_the_losses_of_one(dataset: Path, uninterrupted: Path, tmp_path: Path) -> None:
    done = tiny_run.train(tiny_run.configuration(tmp_path, dataset), processes=2)
    assert done.returncode == 0, done.stderr
    assert "2 rank(s)" in (tmp_path / "log.txt").read_text()
    assert_same_losses(tmp_path, uninterrupted, relative=1e-5)


@pytest.mark.slow
def test_torchrun_gives_what_deepspeed_gives(dataset: Path, tmp_path: Path) -> None:
    by_deepspeed, by_torchrun = (tiny_run.configuration(tmp_path / name, dataset) for name in ("deepspeed", "torchrun"))
    assert tiny_run.train(by_deepspeed, processes=2).returncode == 0
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, "-m", "pipeline.app", "train", str(by_torchrun)], env=tiny_run.environment(), capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 0, done.stderr
    assert tiny_run.metrics(tmp_path / "torchrun") == tiny_run.metrics(tmp_path / "deepspeed")


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_after_each_step_the_teacher_has_moved_towards_the_student_by_the_moving_average(dataset: Path, tmp_path: Path, processes: int) -> None:
    config = tiny_run.configuration(tmp_path, dataset, save_every_steps=1, keep_last=5)
    assert tiny_run.train(config, processes).returncode == 0
    saved = [checkpoint.read(str(tmp_path / "train" / "checkpoints" / checkpoint.name_of(step))) for step in range(1, 6)]
    for before, after in itertools.pairwise(saved):
        old, new, student = before.tensors("teacher"), after.tensors("teacher"), after.tensors("student")
        for name in new:
            expected = 0.9 * old[name].double() + 0.1 * student[name].double()  # momentum 0.9 is the tiny run's
            assert torch.allclose(new[name].double(), expected, rtol=1e-6, atol=1e-9), name
        assert not torch.equal(old["itm_head.weight"], new["itm_head.weight"])


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("zero_stage", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_temperature_stays_within_its_bounds_however_fast_it_learns(dataset: Path, tmp_path: Path, processes: int, zero_stage: int) -> None:
    fast = {"peak_lr": 1e-4, "final_lr": 1e-4, "warmup_steps": 0, "temperature_lr_scale": 1e4}  # Adam moves it by about 1 a step
    config = tiny_run.configuration(tmp_path, dataset, save_every_steps=1, keep_last=5, optimizer=fast, zero_stage=zero_stage)
    assert tiny_run.train(config, processes).returncode == 0
    saved = [checkpoint.read(str(tmp_path / "train" / "checkpoints" / checkpoint.name_of(step))).tensors("student") for step in range(1, 6)]
    found = torch.cat([weights["temperature"] for weights in saved])
    assert found.dtype == torch.float32
    bounds = torch.tensor([0.001, 0.5])
    assert (found[:, None] == bounds).any(), found
    assert ((found >= bounds[0]) & (found <= bounds[1])).all(), found
    used = [record["temperature"] for record in tiny_run.metrics(tmp_path)]
    assert used[1:] == pytest.approx(found[:-1].tolist())


def test_a_run_killed_between_checkpoints_continues_bit_for_bit(dataset: Path, uninterrupted: Path, tmp_path: Path) -> None:
    config = tiny_run.configuration(tmp_path, dataset, save_every_steps=2, model={"hidden_dropout": 0.1, "attention_dropout": 0.1}, max_steps=120)
    reference = tiny_run.configuration(tmp_path / "reference", dataset, model={"hidden_dropout": 0.1, "attention_dropout": 0.1}, max_steps=120)
    process = subprocess.Popen(
        tiny_run.command(config), env=tiny_run.environment(), start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_for(lambda: (tmp_path / "train" / "checkpoints" / "latest").exists() and last_step(tmp_path) >= 3, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    killed_at = last_step(tmp_path)
    assert killed_at < 120
    resumed = tiny_run.train(config)
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed from" in (tmp_path / "log.txt").read_text()
    assert tiny_run.train(reference).returncode == 0
    assert tiny_run.metrics(tmp_path) == tiny_run.metrics(tmp_path / "reference")
    for name in ("student", "teacher", "optimizer", "queue"):
        ours, theirs = (checkpoint.read(str(run / "train" / "checkpoints")).tensors(name) for run in (tmp_path, tmp_path / "reference"))
        assert all((ours[key] == theirs[key]).all() for key in theirs), name


def test_sigterm_saves_and_exits_with_4(dataset: Path, tmp_path: Path) -> None:
    config = tiny_run.configuration(tmp_path, dataset, max_steps=100_000, epochs=100_000)
    process = subprocess.Popen(tiny_run.command(config), env=tiny_run.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: last_step(tmp_path) >= 1, process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 4, errors
    assert "received SIGTERM; run the same command again to continue" in errors
    saved = checkpoint.read(str(tmp_path / "train" / "checkpoints"))
    assert saved.step == last_step(tmp_path)


def test_a_changed_recipe_is_refused_by_key(dataset: Path, uninterrupted: Path) -> None:
    done = tiny_run.train(tiny_run.configuration(uninterrupted, dataset, momentum=0.5))
    assert done.returncode == 2
    assert "training.momentum is 0.5" in done.stderr
    assert "0.9" in done.stderr


def test_a_loss_or_an_option_that_was_taken_out_is_refused_by_key() -> None:
    losses = {"itc": {}, "itm": {"weight": 3.0}, "mlm": None}
    saved = checkpoint.Checkpoint("old", {"training": TrainingConfig(dataset="x", losses=losses).model_dump(mode="json")})
    for changed, key in (
        ({"itc": {}, "itm": {"weight": 3.0}}, "mlm"),
        ({"itc": {}, "itm": {}, "mlm": None}, "itm"),
        ({"itm": {"weight": 3.0}, "mlm": None}, "itc"),
    ):
        with pytest.raises(ConfigError, match=f"losses.{key}"):
            refuse_changed(TrainingConfig(dataset="x", losses=changed), saved)
    refuse_changed(TrainingConfig(dataset="x", losses=losses, num_workers=9), saved)


@pytest.mark.parametrize("before", ["group", "global"])
def test_a_run_does_not_go_on_with_other_negatives(before: str) -> None:
    saved = checkpoint.Checkpoint("old", {"training": TrainingConfig(dataset="x", negatives=before).model_dump(mode="json")})
    after = "global" if before == "group" else "group"
    with pytest.raises(ConfigError, match=f"training.negatives is '{after}', but old was trained with '{before}'"):
        refuse_changed(TrainingConfig(dataset="x", negatives=after), saved)
    refuse_changed(TrainingConfig(dataset="x", negatives=before, micro_batch_size=64), saved)


def test_a_setting_that_came_after_a_checkpoint_has_its_default_in_it() -> None:
    """A checkpoint of an older version knows neither the key nor the loss's option; null for options is the same as none of them."""
    config = TrainingConfig(dataset="x", losses={"itc": {}, "itm": {"weight": 3.0, "same_image_negatives": True}})
    older = config.model_dump(mode="json")
    older["losses"] = {"itc": None, "itm": {"weight": 3.0}}
    del older["patch_dropout"], older["optimizer"]["reference_batch_size"], older["model"]["image_pool"]
    saved = checkpoint.Checkpoint("old", {"training": older})
    refuse_changed(config, saved)
    for changed, message in (
        ({"patch_dropout": 0.5}, r"training\.patch_dropout is 0\.5, but old was trained with 0\.0; set it back"),
        ({"losses": {"itc": {"soft_targets": False}, "itm": {"weight": 3.0}}}, r"training\.losses\.itc\.soft_targets is False, but old was trained with True"),
    ):
        with pytest.raises(ConfigError, match=message):
            refuse_changed(config.model_copy(update=changed), saved)


def test_a_setting_that_a_newer_version_does_not_know_says_who_does() -> None:
    config = TrainingConfig(dataset="x")
    older = config.model_dump(mode="json")
    older["optimizer"]["nesterov"] = True
    with pytest.raises(ConfigError, match=r"training\.optimizer\.nesterov does not exist any more, but old was .*\(True\); go on with the version"):
        refuse_changed(config, checkpoint.Checkpoint("old", {"training": older}))


@pytest.mark.slow
def test_sigterm_to_the_launching_command_lets_both_ranks_save_and_a_restart_finishes(dataset: Path, tmp_path: Path) -> None:
    config = tiny_run.configuration(tmp_path, dataset, max_steps=100_000, epochs=100_000)
    process = subprocess.Popen(tiny_run.command(config, processes=2), env=tiny_run.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: last_step(tmp_path) >= 1, process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 4, errors
    assert checkpoint.read(str(tmp_path / "train" / "checkpoints")).step == last_step(tmp_path)


@pytest.mark.slow
def test_a_finished_run_started_again_with_two_ranks_ends_at_once(dataset: Path, tmp_path: Path) -> None:
    config = tiny_run.configuration(tmp_path, dataset)
    assert tiny_run.train(config).returncode == 0
    assert tiny_run.train(config, processes=2).returncode == 0
    assert "finished before" in (tmp_path / "log.txt").read_text()


def test_a_checkpoint_of_another_shape_is_refused_in_one_line(dataset: Path, uninterrupted: Path) -> None:
    done = tiny_run.train(tiny_run.configuration(uninterrupted, dataset, model={"text_intermediate": 128}))
    assert done.returncode == 2
    assert "training.model.text_intermediate is 128" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_an_unknown_loss_is_told_once_and_before_anything_is_looked_for(tmp_path: Path, processes: int) -> None:
    done = tiny_run.train(tiny_run.configuration(tmp_path, tmp_path / "absent", losses={"itc": {}, "itn": {}}), processes)
    assert done.returncode == 2
    (line,) = [line for line in (done.stdout + done.stderr).splitlines() if "albef: " in line]
    assert "training.losses.itn is unknown; did you mean" in line


def test_a_missing_dataset_is_one_line(tmp_path: Path) -> None:
    done = tiny_run.train(tiny_run.configuration(tmp_path, tmp_path / "absent"))
    assert done.returncode == 2
    assert str(tmp_path / "absent") in done.stderr
    assert "Traceback" not in done.stderr


CLOSED_WITH_PIECES_ANNOUNCED = """
import json, sys, time
from pathlib import Path
from pipeline.app.config import RunConfig
from pipeline.core.config import load
from training import distributed, engine
from training.training_run import put_together

config = load(RunConfig, Path(sys.argv[1]), []).training
trainer = engine.Trainer(put_together(config, Path(sys.argv[2]), distributed.start(config.torch_threads)))
trainer.train()
reader = trainer.run.loader.dataset.parts[0].dataset.reader
later = 1000 * reader.options.piece_bytes
reader.prefetch(config.dataset + "/later.tar", 0, later, later)
trainer.close()
closed = reader.counters["requests"]
time.sleep(1)
print(json.dumps({"requests": closed, "after": reader.counters["requests"] - closed}))
"""


def test_a_closed_trainer_fetches_nothing_more(dataset: Path, s3_bucket: str, tmp_path: Path) -> None:
    for path in dataset.rglob("*"):
        if path.is_file():
            storage.write_bytes(f"{s3_bucket}/set/{path.relative_to(dataset)}", path.read_bytes())
    config = tiny_run.configuration(tmp_path, f"{s3_bucket}/set", cache_folder=str(tmp_path / "cache"))
    command = [sys.executable, "-c", CLOSED_WITH_PIECES_ANNOUNCED, str(config), str(tmp_path)]
    done = subprocess.run(command, env=tiny_run.environment(), capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["requests"] >= 3
    assert found["after"] == 0


READS_OF_FIRST_WEIGHTS = """
import collections, json, shutil, sys
from pathlib import Path
from pipeline.app.config import RunConfig
from pipeline.core.config import load
from training import engine

first, counts = sys.argv[3], collections.Counter()
def note(event, arguments):
    if event == "open" and str(arguments[0]).startswith(first):
        counts[Path(arguments[0]).name] += 1
sys.addaudithook(note)
config = load(RunConfig, Path(sys.argv[1]), []).training
engine.run(config, Path(sys.argv[2]))
started = dict(counts)
shutil.rmtree(first)
engine.run(config, Path(sys.argv[2]))
print(json.dumps(started))
"""


def test_first_weights_are_read_once_and_a_run_that_goes_on_does_without_them(dataset: Path, uninterrupted: Path, tmp_path: Path) -> None:
    shutil.copytree(uninterrupted / "train" / "checkpoints", tmp_path / "first")
    init = {"vision": None, "text": None, "tokenizer": None, "checkpoint": str(tmp_path / "first")}
    config = tiny_run.configuration(tmp_path / "run", dataset, max_steps=1, init=init)
    command = [sys.executable, "-c", READS_OF_FIRST_WEIGHTS, str(config), str(tmp_path / "run"), str(tmp_path / "first")]
    done = subprocess.run(command, env=tiny_run.environment(), capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    read = json.loads(done.stdout.splitlines()[-1])
    assert {name: read[name] for name in ("student.safetensors", "teacher.safetensors", "queue.safetensors", "vocab.txt")} == dict.fromkeys(
        ("student.safetensors", "teacher.safetensors", "queue.safetensors", "vocab.txt"), 1
    )


def last_step(run: Path) -> int:
    path = run / "train" / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    steps = [json.loads(line)["step"] for line in lines if line.endswith("}")]
    return max(steps, default=0)


def wait_for(condition: object, process: "subprocess.Popen[str] | subprocess.Popen[bytes]", timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():  # type: ignore[operator]
        assert process.poll() is None, "the run ended before the moment the test waited for"
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(autouse=True)
def _no_rank_of_an_outer_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
