"""Training on a blend: what each dataset gave stands in the metrics and in the checkpoint, and a mistake in the blend is one line."""

import json
from pathlib import Path

import pytest
import tiny_run

from pipeline.core import config as configuration
from pipeline.core.errors import ConfigError
from training import checkpoint
from training.config import TrainingConfig


@pytest.fixture(autouse=True)
def _no_rank_of_an_outer_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


def blend(folder: Path) -> dict[str, object]:
    tiny_run.write_dataset(folder / "web")
    tiny_run.write_dataset(folder / "coco", samples=40, shards=2)
    return {"blend": [{"dataset": str(folder / "web"), "weight": 3}, {"dataset": str(folder / "coco"), "weight": 1, "name": "captions"}]}


def test_a_run_on_a_blend_counts_what_each_dataset_gave(tmp_path: Path) -> None:
    config = tiny_run.configuration(tmp_path / "run", blend(tmp_path), max_steps=6)
    done = tiny_run.train(config)
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in (tmp_path / "run" / "train" / "metrics.jsonl").read_text().splitlines()]
    assert [(record["data/web/drawn"], record["data/captions/drawn"]) for record in records] == [(12 * step, 4 * step) for step in range(1, 7)]
    assert records[-1]["data/captions/epochs"] == 24 / 60  # 40 pictures, every second one with two captions
    state = checkpoint.read(str(tmp_path / "run" / "train" / "checkpoints")).state
    assert state["manifest"] == {"web": 1, "captions": 1}
    assert state["position"]["drawn"] == {"web": 72, "captions": 24}
    assert {name: (counters["drawn"], counters["replaced"]) for name, counters in state["sources"].items()} == {"web": (72, 0), "captions": (24, 0)}
    assert all(counters["bytes"] > 1000 * counters["drawn"] for counters in state["sources"].values())
    assert len(json.dumps([state["position"], state["sources"]])) < 1000


def test_a_mistake_in_the_blend_names_the_key() -> None:
    with pytest.raises(ConfigError, match=r"^run\.yaml: dataset: blend\.0\.weight is None: expected a number above 0"):
        configuration.validate(TrainingConfig, {"dataset": {"blend": [{"dataset": "x"}]}}, "run.yaml")
    with pytest.raises(ConfigError, match="of a blend, give each dataset its own manifest"):
        configuration.validate(TrainingConfig, {"dataset": {"blend": [{"dataset": "x", "weight": 1}]}, "manifest": 3}, "run.yaml")
