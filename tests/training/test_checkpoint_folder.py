"""Checkpoints of a run in a place of their own, here a bucket."""

import json
import logging
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import tiny_run

from pipeline.app.config import RunConfig
from pipeline.app.run import run_stage
from pipeline.core import config as configuration
from pipeline.core import storage
from pipeline.core.errors import AlbefError
from pipeline.core.loopback import free_port
from training import checkpoint, engine
from training.config import TrainingConfig


def interrupted_and_continued(path: Path, on_disk: Path) -> dict[str, Any]:
    """A run that finds STOP when its first step is scored, starts with its checkpoints elsewhere, while the store is away, and as it should.

    Another one has its checkpoints on disk.
    """
    logging.disable(logging.INFO)
    os.environ |= {"DS_ACCELERATOR": "cpu"}
    config = configuration.load(RunConfig, path, [])
    stop, scored, told = Path(config.run.folder) / "STOP", list[str](), list[tuple[str, int]]()

    def score_and_stop(folder: str) -> dict[str, float]:
        scored.append(folder)
        stop.touch()
        return {}

    def start(endpoint: str, training: TrainingConfig) -> None:
        os.environ["AWS_ENDPOINT_URL"] = endpoint
        storage.filesystem("s3://any")[0].clear_instance_cache()
        try:
            engine.run(training, Path(config.run.folder), score_and_stop)
        except AlbefError as error:
            told.append((str(error), error.exit_code))

    assert config.training is not None
    there = os.environ["AWS_ENDPOINT_URL"]
    start(there, config.training.model_copy(update={"checkpoint_folder": "s3://no-such-bucket/checkpoints"}))
    start(there, config.training)
    stop.unlink()
    stopped = checkpoint.read(config.run.folder).path
    start(there, config.training.model_copy(update={"checkpoint_folder": None}))
    start(f"http://127.0.0.1:{free_port()}", config.training)
    os.environ["AWS_ENDPOINT_URL"] = there
    storage.filesystem("s3://any")[0].clear_instance_cache()
    result = run_stage("train", config)
    engine.run(config.training.model_copy(update={"checkpoint_folder": None}), on_disk)
    found = checkpoint.read(config.run.folder)
    return {"scored": scored, "told": told, "result": result, "stopped": stopped, "found": found.path, "step": found.step}


def test_a_run_with_its_checkpoints_in_a_bucket_stops_waits_for_the_store_and_goes_on(s3_bucket: str, tmp_path: Path) -> None:
    folder = f"{s3_bucket}/of/this/run"
    tiny_run.write_dataset(tmp_path / "data")
    config = tiny_run.configuration(
        tmp_path / "run", tmp_path / "data", max_steps=3, checkpoint_folder=folder, evaluate_every_steps=1, save_every_steps=3, save_patience_s=0.0
    )
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        done = pool.submit(interrupted_and_continued, config, tmp_path / "on-disk").result()
    (nowhere, nowhere_code), (stopped, stopped_code), (elsewhere, elsewhere_code), (away, away_code) = done["told"]
    assert "s3://no-such-bucket/checkpoints/.probe.tmp: not found" in nowhere
    assert nowhere_code == 2
    assert "training stopped at step 2 of 3" in stopped
    assert done["stopped"] == f"{folder}/step-0000002", "the run's folder knows of the bucket"
    assert f"training.checkpoint_folder: {tmp_path}/run/train/checkpoints has no checkpoint, but {folder} has this run's step-0000002; copy" in elsewhere
    assert elsewhere_code == 2
    assert "storage cannot be reached" in away
    assert "when the store is back, the same command goes on" in away
    assert stopped_code == away_code == 4
    assert done["scored"] == [f"{folder}/step-0000001", f"{folder}/step-0000002"]
    assert done["found"] == done["result"]["checkpoint"] == f"{folder}/step-0000003"
    assert done["step"] == 3
    assert not (tmp_path / "run" / "train" / "checkpoints").exists()
    assert [record for record in tiny_run.metrics(tmp_path / "run") if "loss/total" in record] == tiny_run.metrics(tmp_path / "on-disk")
    assert json.loads((tmp_path / "run" / "stages" / "train.json").read_text())["result"]["steps"] == 3


@pytest.fixture(autouse=True)
def _no_rank_of_an_outer_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
