"""`albef run` on a world small enough for a test: all stages over real HTTP, killed and continued, with the counts adding up."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import yaml

from pipeline.app.config import RunConfig
from pipeline.app.run import run_stage
from pipeline.core.loopback import free_port

TINY_MODEL = {
    "image_size": 32, "patch_size": 16, "vision_width": 32, "vision_depth": 1, "vision_heads": 2, "text_hidden": 32, "text_heads": 2, "text_layers": 1,
    "fusion_layers": 1, "text_intermediate": 64, "max_positions": 32, "embed_dim": 16,
}  # fmt: skip


def tiny_world_run(folder: Path, port: int) -> Path:
    """Configuration of a complete run: 160 pictures of which 16 have broken URLs."""
    world = folder / "world"
    standin = {"resolution": 32, "embed_dim": 32, "depth": 1, "num_heads": 2, "pictures": 128, "held_out": 64, "epochs": 1}
    scenes = {
        "folder": str(world), "train": 160, "validation": 8, "test": 12, "picture_size": 48, "bad_url_rate": 0.1, "processes": 1,
        "base_url": f"http://127.0.0.1:{port}", "standin": standin,
    }  # fmt: skip
    ingest = {
        "sources": [{"type": "parquet", "path": str(world / "pairs.parquet")}], "output": str(folder / "dataset"), "samples_per_shard": 40,
        "store": {"image_size": 48}, "engine": {"processes": 1}, "fetch": {"timeout_s": 2, "attempts": 1, "connections_per_host": 16, "allow_loopback": True},
    }  # fmt: skip
    training = {
        "dataset": str(folder / "dataset"), "model": TINY_MODEL, "global_batch_size": 16, "group_size": 8, "queue_size": 24, "max_steps": 40,
        "init": {"vision": str(world / "standin_vit.pth"), "text": None, "tokenizer": None, "vocabulary_size": 200}, "alpha_ramp_steps": 3,
        "precision": "fp32", "num_workers": 1, "torch_threads": 1, "save_every_steps": 5, "evaluate_every_steps": 20,
        "optimizer": {"warmup_steps": 1, "peak_lr": 1e-3, "final_lr": 1e-4},
    }  # fmt: skip
    retrieval = {"annotations": str(world / "karpathy.json"), "pictures": str(world / "pictures"), "k_test": 4}
    config = {
        "run": {"folder": str(folder / "run")},
        "scenes": scenes,
        "pictures": {"folder": str(world), "port": port},
        "ingest": ingest,
        "training": training,
        "eval": {"tasks": {"retrieval": retrieval}, "baselines": str(world / "baselines.json")},
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def start(config: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "pipeline.app", "run", str(config)]
    return subprocess.Popen(command, env=tiny_run.environment(), start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(config: Path) -> str:
    """Run to the end; returns what was printed."""
    process = start(config)
    out, errors = process.communicate(timeout=250)
    assert process.returncode == 0, errors
    return out


def kill_when(config: Path, reached: Path) -> None:
    """Start the run and kill its whole process group as soon as `reached` exists."""
    process = start(config)
    deadline = time.monotonic() + 200
    while not reached.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def stage(folder: Path, name: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "run" / "stages" / f"{name}.json").read_text())["result"]
    return record


@pytest.fixture(scope="module")
def port() -> int:
    """One for all runs here: the URLs name it, and they are part of the data whose order a run depends on."""
    return free_port()


@pytest.fixture(scope="module")
def finished(port: int, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    printed = finish(tiny_world_run(folder, port))
    assert printed.strip() == f"report: {folder / 'run' / 'report.html'}"
    return folder


def test_every_picture_of_the_world_ends_in_the_outcome_its_url_asks_for(finished: Path) -> None:
    outcomes = stage(finished, "ingest")["outcomes"]
    asked = json.loads((finished / "world" / "world.json").read_text())["urls"]
    assert outcomes == {
        "success": asked["good"],
        "http_404": asked["404"],
        "truncated": asked["truncated"],
        "not_an_image": asked["html"],
        "timeout": asked["slow"],
    }
    assert sum(outcomes.values()) == 160


def test_the_report_is_one_file_that_shows_every_stage(finished: Path) -> None:
    report = (finished / "run" / "report.html").read_text()
    assert "not_an_image" in report
    assert "symbolic oracle" in report
    assert "http://" not in report.replace("http://www.w3.org", "").replace("http://127.0.0.1", "")


def test_a_finished_run_does_nothing_again(finished: Path) -> None:
    before = (finished / "run" / "train" / "metrics.jsonl").stat().st_mtime_ns
    finish(finished / "run.yaml")
    assert (finished / "run" / "train" / "metrics.jsonl").stat().st_mtime_ns == before


def test_another_checkpoint_is_evaluated_again_though_the_configuration_is_the_same(finished: Path) -> None:
    record = finished / "run" / "stages" / "eval.json"
    before = json.loads(record.read_text())["fingerprint"]
    latest = finished / "run" / "train" / "checkpoints" / "latest"
    newest = latest.read_text()
    latest.write_text(sorted(path.name for path in latest.parent.glob("step-*"))[0])
    try:
        subprocess.run([sys.executable, "-m", "pipeline.app", "eval", str(finished / "run.yaml")], env=tiny_run.environment(), check=True, capture_output=True)
        assert json.loads(record.read_text())["fingerprint"] != before
    finally:
        latest.write_text(newest)
        subprocess.run([sys.executable, "-m", "pipeline.app", "eval", str(finished / "run.yaml")], env=tiny_run.environment(), check=True, capture_output=True)
    assert json.loads(record.read_text())["fingerprint"] == before


@pytest.mark.slow
def test_killed_in_ingest_in_training_and_in_evaluation_it_ends_as_if_uninterrupted(finished: Path, port: int, tmp_path: Path) -> None:
    config = tiny_world_run(tmp_path, port)
    kill_when(config, tmp_path / "dataset" / "ingest.json")
    kill_when(config, tmp_path / "run" / "train" / "checkpoints" / "step-0000010" / "manifest.json")
    kill_when(config, tmp_path / "run" / "stages" / "train.json")
    finish(config)
    assert stage(tmp_path, "ingest")["outcomes"] == stage(finished, "ingest")["outcomes"]
    names = ("loss/itc", "loss/itm", "loss/mlm", "loss/total")
    ours, theirs = (
        [[record.get(name) for name in names] for record in map(json.loads, (folder / "run" / "train" / "metrics.jsonl").read_text().splitlines())]
        for folder in (tmp_path, finished)
    )
    assert ours == theirs
    assert stage(tmp_path, "eval") == stage(finished, "eval")


def test_ingest_looks_again_when_a_block_list_grew_or_the_dataset_is_another(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "list.jsonl").write_text('{"url": "http://127.0.0.1:9/a.jpg", "caption": "a cat"}\n')
    (tmp_path / "blocked.txt").write_text("")
    section = {
        "sources": [{"type": "jsonl", "path": str(tmp_path / "list.jsonl")}],
        "output": str(tmp_path / "set"),
        "blocked": [str(tmp_path / "blocked.txt")],
    }
    section |= {"fetch": {"attempts": 1, "timeout_s": 2}, "engine": {"processes": 1}}
    config = RunConfig.model_validate({"run": {"folder": str(tmp_path / "run")}, "ingest": section})

    def skips() -> bool:
        caplog.clear()
        with caplog.at_level("INFO"):
            run_stage("ingest", config)
        return "finished before, skipped" in caplog.text

    assert [skips(), skips()] == [False, True]
    (tmp_path / "blocked.txt").write_text("http://127.0.0.1:9/b.jpg\n")
    assert [skips(), skips()] == [False, True]
    (tmp_path / "set" / "MANIFEST").unlink()
    assert [skips(), skips()] == [False, True]


def test_a_port_in_use_is_named_before_anything_is_drawn(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        process = start(tiny_world_run(tmp_path, other.getsockname()[1]))
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "another program uses this port" in errors
    assert not (tmp_path / "world").exists()
