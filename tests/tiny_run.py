"""A training run small enough for tests: pictures of coloured noise, a 2-layer model, started as its own processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import yaml

from shards.manifest import publish
from shards.writer import SampleToWrite, write_shard

WORDS = ("red", "blue", "dog", "cat", "on", "the", "grass", "with", "a", "hat")


TIMINGS = ("pairs_per_s", "tflops", "mfu", "data_wait_s", "ranks")
OF_THE_MACHINE = ("data/", "checkpoint/", "memory/")


def write_dataset(folder: Path, samples: int = 96, shards: int = 3) -> None:
    """JPEGs with one or two captions each, over a few shards."""
    rng = np.random.default_rng(0)
    entries = []
    for shard in range(shards):
        rows = []
        for number in range(shard, samples, shards):
            picture = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            captions = tuple(" ".join(rng.choice(WORDS, size=rng.integers(3, 9))) for _ in range(1 + number % 2))
            rows.append(SampleToWrite(f"{number:06d}", cv2.imencode(".jpg", picture)[1].tobytes(), "jpg", captions))
        entries.append(write_shard(str(folder / f"{shard:05d}.tar"), rows, source="test"))
    publish(str(folder), entries, outcomes={"success": samples}, config={})


def configuration(folder: Path, dataset: Path | str | dict[str, object], **changes: object) -> Path:
    """A YAML file whose run directory is `folder`; `changes` are training settings."""
    model = {
        "image_size": 32, "patch_size": 16, "vision_width": 32, "vision_depth": 1, "vision_heads": 2, "text_hidden": 32, "text_heads": 2, "text_layers": 1,
        "fusion_layers": 1, "text_intermediate": 64, "max_positions": 16, "embed_dim": 16, "hidden_dropout": 0.0, "attention_dropout": 0.0,
    }  # fmt: skip
    model.update(changes.pop("model", {}))  # type: ignore[call-overload]
    training = {
        "dataset": dataset if isinstance(dataset, dict) else str(dataset), "model": model,
        "init": {"vision": None, "text": None, "tokenizer": None, "vocabulary_size": 100},
        "global_batch_size": 16,
        "group_size": 4, "queue_size": 24, "momentum": 0.9, "epochs": 100, "max_steps": 5, "alpha_ramp_steps": 3, "max_tokens": 12, "precision": "fp32",
        "num_workers": 1,
        "torch_threads": 1, "save_every_steps": 100, "optimizer": {"warmup_steps": 1, "peak_lr": 1e-3, "final_lr": 1e-4}, **changes,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump({"run": {"folder": str(folder)}, "training": training}))
    return path


def command(config: Path, processes: int = 1) -> list[str]:
    return [sys.executable, "-m", "pipeline.app", "train", str(config), "--processes", str(processes)]


def environment() -> dict[str, str]:
    return {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}


def train(config: Path, processes: int = 1) -> subprocess.CompletedProcess[str]:
    """Run `albef train` to its end."""
    return subprocess.run(command(config, processes), env=environment(), capture_output=True, text=True, check=False, timeout=280)


def metrics(folder: Path) -> list[dict[str, float]]:
    """One record a step, timings left out, since they differ from run to run."""
    records = [json.loads(line) for line in (folder / "train" / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in record.items() if name not in TIMINGS and not name.startswith(OF_THE_MACHINE)} for record in records]
