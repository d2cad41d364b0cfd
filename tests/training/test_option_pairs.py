"""Every pair of options of training, in a few dozen short runs of the command on drawn scenes: none stumbles, every loss is finite."""

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import yaml
from allpairspy import AllPairs

from pipeline.app.config import RunConfig
from pipeline.core.config import reference
from pipeline.core.loopback import free_port
from training.config import LOSS_OPTIONS
from training.losses import LOSSES

STEPS = 3
STANDIN = "the world's stand-in for ImageNet weights"
OPTIONS: dict[str, list[Any]] = {
    "losses": [["itc", "itm", "mlm"], ["itm", "mlm"], ["itc", "mlm"], ["itc"], ["mlm"], ["itm"]],
    "losses.itc.soft_targets": [True, False],
    "losses.itc.same_image_positives": [False, True],
    "losses.itm.hard_from_step": [0, 2, None],
    "losses.itm.same_image_negatives": [True, False],
    "losses.itm.weight": [1.0, 3.0],
    "losses.mlm.soft_targets": [True, False],
    "global_batch_size": [16, 24],
    "group_size": [4, 8, 1],
    "negatives, micro_batch_size": [("group", None), ("group", 8), ("global", None)],  # one entry, as a global group refuses to accumulate
    "epoch_over": ["pairs", "images"],
    "queue_size": [24, 0, 100],
    "momentum": [0.9, 0.0, 1.0],
    "alpha": [0.4, 0.0],
    "alpha_start_step": [0, 2],
    "alpha_ramp_steps": [None, 0, 2],
    "mlm_probability": [0.15, 0.01, 0.9],
    "max_tokens": [25, 2],
    "patch_dropout": [0.0, 0.5],
    "crop_scale": [[0.2, 1.0], [1.0, 1.0]],
    "flip": [True, False],
    "randaugment": [True, False],
    "sharpness": ["clipped", "original"],
    "transform": ["fast", "parity"],
    "augment_on": ["cpu", "device"],
    "schedule": ["paper", "original_code"],
    "optimizer.reference_batch_size": [None, 32],
    "optimizer.warmup_steps": [None, 0, 100],
    "optimizer.temperature_lr_scale": [1.0, 0.0, 10.0],
    "optimizer.max_grad_norm": [0.0, 1.0],
    "model.image_pool": ["cls", "mean"],
    "model.hidden_dropout": [0.1, 0.0],
    "model.attention_dropout": [0.1, 0.0],
    "init.vision": [None, STANDIN],
    "precision": ["fp32", "bf16"],
    "zero_stage": [1, 2],
    "num_workers": [1, 0, 2],
    "lanes": [None, 2],
    "block_shards": [None, 1],
}
KEYS = list(OPTIONS)
IN_ONE_PROCESS = """
import sys
from pipeline.app.cli import main
for config in sys.argv[1:]:
    sys.argv = ["albef", "train", config]
    try:
        main()
    except SystemExit as end:
        assert not end.code, config
"""


def possible(values: list[Any]) -> bool:
    """False for the combination that the configuration refuses in so many words."""
    chosen = dict(zip(KEYS, values, strict=False))
    return not (chosen.get("transform") == "parity" and chosen.get("randaugment") and chosen.get("augment_on") == "device")


def table() -> list[dict[str, Any]]:
    """Runs in which every possible pair of two options' values occurs at least once."""
    return [dict(zip(KEYS, row, strict=True)) for row in AllPairs(list(OPTIONS.values()), filter_func=possible)]


def by_name(options: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Each option and its value, also where several are one entry of the table."""
    for key, value in options.items():
        names = key.split(", ")
        yield from zip(names, value if len(names) > 1 else [value], strict=True)


def written(folder: Path, world: Path, options: dict[str, Any]) -> Path:
    """The configuration of one run."""
    path = tiny_run.configuration(folder, world / "dataset", model={"max_positions": 32}, max_steps=STEPS, save_every_steps=STEPS)
    config = yaml.safe_load(path.read_text())
    for key, value in by_name(options):
        *sections, name = key.split(".")
        if key == "losses":
            config["training"]["losses"] = {loss: {} for loss in value}
            continue
        if key == "losses.itm.hard_from_step" and "itc" not in config["training"]["losses"]:
            value = None  # what is refused otherwise, as nothing would teach the similarities
        inner = config["training"]
        for section in sections:
            inner = inner.get(section)
            if inner is None:
                break  # an option of a loss that this run does without
        else:
            inner[name] = str(world / "world" / "standin_vit.pth") if value == STANDIN else value
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small world of scenes and, ingested from it over HTTP, its dataset."""
    folder, port = tmp_path_factory.mktemp("world"), free_port()
    standin = {"resolution": 32, "embed_dim": 32, "depth": 1, "num_heads": 2, "pictures": 64, "held_out": 64, "epochs": 1}
    config = {
        "run": {"folder": str(folder / "run")},
        "scenes": {
            "folder": str(folder / "world"), "train": 64, "validation": 2, "test": 2, "picture_size": 48, "bad_url_rate": 0.0, "processes": 1,
            "base_url": f"http://127.0.0.1:{port}", "standin": standin,
        },
        "pictures": {"folder": str(folder / "world"), "port": port},
        "ingest": {
            "sources": [{"type": "parquet", "path": str(folder / "world" / "pairs.parquet")}], "output": str(folder / "dataset"), "samples_per_shard": 16,
            "store": {"image_size": 48}, "engine": {"processes": 1}, "fetch": {"connections_per_host": 16, "allow_loopback": True},
        },
    }  # fmt: skip
    (folder / "world.yaml").write_text(yaml.safe_dump(config))
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.app", "run", str(folder / "world.yaml")], env=tiny_run.environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


def assert_trained(folder: Path, options: dict[str, Any]) -> None:
    records = [json.loads(line) for line in (folder / "train" / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, STEPS + 1)), options
    for record in records:
        assert {name.removeprefix("loss/") for name in record if name.startswith("loss/")} == {*options["losses"], "total"}, options
        assert all(math.isfinite(value) for value in record.values() if isinstance(value, float)), (options, record)
        assert record["skipped_steps"] == 0, options


@pytest.mark.slow
def test_every_pair_of_options_trains(world: Path, tmp_path: Path) -> None:
    runs = table()
    paths = [written(tmp_path / f"{number:03d}", world, options) for number, options in enumerate(runs)]
    done = subprocess.run([sys.executable, "-c", IN_ONE_PROCESS, *map(str, paths)], env=tiny_run.environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for path, options in zip(paths, runs, strict=True):
        assert_trained(path.parent, options)


def test_the_table_holds_every_possible_pair_of_values() -> None:
    runs = table()
    for first in range(len(KEYS)):
        for second in range(first):
            met = {(repr(run[KEYS[first]]), repr(run[KEYS[second]])) for run in runs}
            assert len(met) == len(OPTIONS[KEYS[first]]) * len(OPTIONS[KEYS[second]]), (KEYS[first], KEYS[second])


def test_every_option_of_the_table_is_documented() -> None:
    documented = {key for key, _, _ in reference(RunConfig)}
    for key in ", ".join(KEYS).split(", "):
        if key.startswith("losses."):
            _, loss, option = key.split(".")
            assert option in [field.name for field in fields(LOSSES[loss])]  # type: ignore[arg-type]
            key = "losses"
        assert f"training.{key}" in documented


def test_the_reference_names_every_option_of_every_loss() -> None:
    for name, loss in LOSSES.items():
        for field in fields(loss):  # type: ignore[arg-type]
            assert (field.name if field.name == "weight" else f"{name}.{field.name}") + " (" in LOSS_OPTIONS
