"""The suite as a whole: results on disk, finished tasks kept, a killed run continued, mistakes in one line."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eval import suite
from eval.config import EvalConfig
from eval.predictor import AlbefPredictor
from pipeline.core.errors import ConfigError, DataError, Stopped
from training import checkpoint

Factory = Callable[[EvalConfig, str], AlbefPredictor]


@pytest.fixture
def factory(make_predictor: Callable[..., AlbefPredictor]) -> Factory:
    return lambda _config, _checkpoint: make_predictor()


def results_of(run_folder: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((run_folder / "eval" / "results.json").read_text())
    return results


def without_seconds(results: dict[str, Any]) -> dict[str, Any]:
    return {**results, "tasks": {name: {key: value for key, value in record.items() if key != "seconds"} for name, record in results["tasks"].items()}}


def test_the_results_say_what_they_depend_on_and_count_every_item(benchmark_on_disk, factory: Factory, tmp_path: Path) -> None:
    (tmp_path / "baselines.json").write_text('{"oracle": {"text_recall@1": 100.0}}')
    config = benchmark_on_disk.config().model_copy(update={"baselines": str(tmp_path / "baselines.json")})
    returned = suite.run(config, "some/checkpoint", tmp_path / "run", factory)
    results = results_of(tmp_path / "run")
    retrieval = results["tasks"]["retrieval"]
    assert {"images": 12, "captions": 33, "itm_pairs": 60}.items() <= retrieval["counts"].items()
    assert {"weights", "resolution", "interpolation", "text_rules"} <= set(results["model"])
    assert retrieval["options"]["k_test"] == 6
    assert {"split_hash", "picture_sizes_hash"} <= set(retrieval["data"])
    assert results["reference"] == {"oracle": {"text_recall@1": 100.0}}
    assert retrieval["reference"]["chance"]["image_recall@1"] == pytest.approx(100 / 12)
    assert returned["retrieval/itc/r_mean"] == retrieval["metrics"]["itc/r_mean"]
    assert returned["contrast/swapped/itm"] == results["tasks"]["contrast"]["metrics"]["swapped/itm"]
    assert not (tmp_path / "run" / "eval" / "retrieval" / "progress").exists()
    assert json.loads((tmp_path / "run" / "eval" / "gallery.json").read_text())["thumbnails"]


def test_a_finished_task_is_scored_again_only_when_something_changed(benchmark_on_disk, factory: Factory, tmp_path: Path) -> None:
    def marks() -> dict[str, float]:
        return {name: (tmp_path / "eval" / name / "scores.json").stat().st_mtime_ns for name in ("retrieval", "contrast")}

    suite.run(benchmark_on_disk.config(), "checkpoint", tmp_path, factory)
    first = marks()
    suite.run(benchmark_on_disk.config(), "checkpoint", tmp_path, factory)
    assert marks() == first
    suite.run(benchmark_on_disk.config(k_test=3), "checkpoint", tmp_path, factory)
    changed = marks()
    assert changed["retrieval"] > first["retrieval"]
    assert changed["contrast"] == first["contrast"]


KILLABLE = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from conftest import Benchmark, tiny_predictor
from eval import suite

class Slow:
    def __init__(self, inner): self.inner = inner
    def __getattr__(self, name): return getattr(self.inner, name)
    def match_logits(self, *given):
        time.sleep(0.15)
        return self.inner.match_logits(*given)

benchmark = Benchmark.__new__(Benchmark)
benchmark.annotations, benchmark.pictures, benchmark.contrast = Path({annotations!r}), Path({pictures!r}), Path({contrast!r})
suite.run(benchmark.config(pairs_per_save=5), "checkpoint", Path({run!r}), lambda *_: Slow(tiny_predictor()))
"""


def killed_after_three_chunks(script: str, run_folder: Path) -> Iterator[Path]:
    """Start the suite in a process of its own, kill -9 it in the midst of re-ranking, and give the chunks it left."""
    process = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 120
    while len(chunks := sorted(run_folder.glob("eval/retrieval/progress/*/rerank-*.npz"))) < 3:
        assert process.poll() is None, "the suite ended before it could be killed"
        assert time.monotonic() < deadline, "no progress in two minutes"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    yield from chunks


def test_a_run_killed_in_the_midst_of_re_ranking_continues_and_gives_the_same_results(benchmark_on_disk, factory: Factory, tmp_path: Path) -> None:
    run_folder = tmp_path / "killed"
    script = KILLABLE.format(
        tests=str(Path(__file__).parent),
        annotations=str(benchmark_on_disk.annotations),
        pictures=str(benchmark_on_disk.pictures),
        contrast=str(benchmark_on_disk.contrast),
        run=str(run_folder),
    )
    chunks = list(killed_after_three_chunks(script, run_folder))
    assert not (run_folder / "eval" / "results.json").exists()
    for chunk in chunks:  # a mark in what is there: if the second run computed it again, the mark would be gone
        logits = np.load(chunk)["logits"]
        np.savez(chunk.open("wb"), logits=logits + np.float32(1000))
    config = benchmark_on_disk.config(pairs_per_save=5)
    suite.run(config, "checkpoint", run_folder, factory)
    marked = results_of(run_folder)["tasks"]["retrieval"]["metrics"]
    for chunk in chunks:
        assert not chunk.exists()  # cleared away when the task was finished
    suite.run(config, "checkpoint", tmp_path / "whole", factory)
    whole = results_of(tmp_path / "whole")["tasks"]["retrieval"]["metrics"]
    assert {name: value for name, value in marked.items() if name.startswith("itc/")} == {
        name: value for name, value in whole.items() if name.startswith("itc/")
    }
    assert marked != whole, "the second run did not use the chunks of the first"


def test_a_stopped_run_gives_the_results_of_an_uninterrupted_one(benchmark_on_disk, factory: Factory, tmp_path: Path) -> None:
    config = benchmark_on_disk.config(pairs_per_save=5)

    class StopsItself:
        """Puts a STOP file when it has scored its fourth chunk."""

        def __init__(self) -> None:
            self.inner, self.calls = factory(config, ""), 0

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        def match_logits(self, *given: Any) -> Any:
            self.calls += 1
            if self.calls == 4:
                (tmp_path / "stopped" / "STOP").touch()
            return self.inner.match_logits(*given)

    (tmp_path / "stopped").mkdir()
    with pytest.raises(Stopped):
        suite.run(config, "checkpoint", tmp_path / "stopped", lambda *_: StopsItself())
    (tmp_path / "stopped" / "STOP").unlink()
    suite.run(config, "checkpoint", tmp_path / "stopped", factory)
    suite.run(config, "checkpoint", tmp_path / "whole", factory)
    assert without_seconds(results_of(tmp_path / "stopped")) == without_seconds(results_of(tmp_path / "whole"))


def write_checkpoint(folder: Path, predictor: AlbefPredictor) -> str:
    model = predictor.model
    weights = dict(model.named_parameters())
    record = {"state": {"step": 3}, "model": model.config.model_dump(mode="json"), "training": {}}
    teacher = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    checkpoint.write(str(folder), 3, {"student": weights, "teacher": teacher}, predictor.tokenizer, record)
    return str(folder)


def test_a_checkpoint_on_disk_scores_like_the_model_it_holds(benchmark_on_disk, factory: Factory, predictor: AlbefPredictor, tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "checkpoints", predictor)
    config = benchmark_on_disk.config().model_copy(update={"device": "cpu"})
    assert suite.run(config, path, tmp_path / "loaded") == suite.run(config, path, tmp_path / "direct", factory)
    teacher = suite.load_predictor(config.model_copy(update={"tower": "teacher"}), path)
    assert not any(parameter.any() for parameter in teacher.model.parameters())


def test_validation_gives_the_recalls_of_the_validation_split_and_leaves_nothing(benchmark_on_disk, factory: Factory, tmp_path: Path) -> None:
    scores = suite.validate_checkpoint(benchmark_on_disk.config(), str(tmp_path / "step-1"), tmp_path, factory)
    assert set(scores) == {"text_recall@1", "image_recall@1", "r_mean", "itm_loss"}
    val = benchmark_on_disk.config(split="val", k_test=0)
    whole = suite.run(val, "checkpoint", tmp_path / "run", factory)
    assert scores["r_mean"] == whole["retrieval/itc/r_mean"]
    assert not (tmp_path / "eval").exists()
    contrast_only = EvalConfig(tasks={"contrast": benchmark_on_disk.config().tasks["contrast"]})
    assert suite.validate_checkpoint(contrast_only, str(tmp_path / "step-1"), tmp_path, factory) == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": {"retreival": {}}}, r"eval\.tasks\.retreival is unknown; did you mean retrieval\?"),
        ({"tasks": {"retrieval": {"anotations": "x"}}}, r"eval\.tasks\.retrieval: .*anotations"),
        ({"baselines": "nowhere.json"}, r"nowhere\.json: not found"),
    ],
)
def test_a_mistake_in_the_configuration_is_named(benchmark_on_disk, factory: Factory, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        suite.run(benchmark_on_disk.config().model_copy(update=change), "checkpoint", tmp_path, factory)


def test_a_missing_checkpoint_or_picture_is_one_line_and_leaves_nothing(benchmark_on_disk, factory: Factory, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no checkpoint here"):
        suite.run(benchmark_on_disk.config(), str(tmp_path / "nowhere"), tmp_path / "run")
    next(benchmark_on_disk.pictures.iterdir()).unlink()
    with pytest.raises(DataError, match="not found"):
        suite.run(benchmark_on_disk.config(), "checkpoint", tmp_path / "run", factory)
    assert not (tmp_path / "run").exists()
