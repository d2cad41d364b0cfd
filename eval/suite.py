"""Run the benchmarks of a configuration on a checkpoint; what is finished is kept, what was interrupted continues."""

import io
import json
import logging
import shutil
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, is_dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from eval.chunks import Progress
from eval.config import EvalConfig
from eval.predictor import AlbefPredictor, Predictor
from eval.task import Outcomes, Scores, Task
from eval.tasks import TASKS
from eval.tasks.retrieval import Retrieval
from pipeline.core import storage
from pipeline.core.choice import chosen_from
from pipeline.core.errors import DataError
from pipeline.core.run_directory import fingerprint
from training.checkpoint import load_for_evaluation

log = logging.getLogger(__name__)

PredictorFactory = Callable[[EvalConfig, str], Predictor]


OUTCOMES = "outcomes.npz"


def run(config: EvalConfig, checkpoint: str, run_folder: Path, predictor_factory: PredictorFactory | None = None) -> dict[str, Any]:
    """Score `checkpoint` and write `<run_folder>/eval/results.json`, with retrieval `gallery.json`, and of each task the outcomes item by item.

    Args:
        predictor_factory: builds the model; by default an ALBEF of ours from its checkpoint.

    Returns:
        The metrics of all tasks as `<task>/<metric>`.

    Raises:
        UserError: a task, a picture, a file or the checkpoint is not usable.
        Stopped: asked to stop; the same call continues.
    """
    tasks = chosen_from(TASKS, config.tasks, "eval.tasks")
    reference = _read_baselines(config.baselines) if config.baselines else {}
    data = {name: task.data() for name, task in tasks.items()}  # what is wrong with the files shows before a model is loaded
    predictor = (predictor_factory or load_predictor)(config, checkpoint)
    settings = predictor.settings
    records = {}
    for name, task in tasks.items():
        records[name] = _finished_or_scored(name, task, predictor, {"model": settings, "options": _options(task), "data": data[name]}, run_folder)
    results = {"checkpoint": checkpoint, "tower": config.tower, "model": settings, "tasks": records, "reference": reference}
    _write_json(run_folder / "eval" / "results.json", results)
    return {f"{name}/{metric}": value for name, record in records.items() for metric, value in record["metrics"].items()}


def load_predictor(config: EvalConfig, checkpoint: str) -> AlbefPredictor:
    """The model of a checkpoint, set up as the configuration says."""
    model, tokenizer, sizes = load_for_evaluation(checkpoint, config.tower)
    return AlbefPredictor(
        model,
        tokenizer,
        sizes.image_size,
        device=config.device,
        precision=config.precision,
        state_type=config.state_type,
        batch_size=config.batch_size,
        pairs_per_batch=config.pairs_per_batch,
        max_words=config.max_words,
        max_tokens=config.max_tokens,
    )


def validate_checkpoint(config: EvalConfig, checkpoint: str, run_folder: Path, predictor_factory: PredictorFactory | None = None) -> dict[str, float]:
    """Quick scores of a checkpoint in the midst of training: retrieval by ITC alone on the validation split, nothing kept.

    A configuration without retrieval gives no scores.
    """
    options = config.tasks.get("retrieval")
    if options is None:
        return {}
    task = chosen_from({"retrieval": Retrieval}, {"retrieval": options}, "eval.tasks")["retrieval"]
    quick = replace(task, split=config.validation_split, k_test=0, itm_loss_pairs=min(task.itm_loss_pairs, 128), gallery=0)
    scores = quick((predictor_factory or load_predictor)(config, checkpoint), Progress(run_folder=run_folder))
    wanted = ("itc/text_recall@1", "itc/image_recall@1", "itc/r_mean", "itm_loss")
    return {name.removeprefix("itc/"): scores.metrics[name] for name in wanted if name in scores.metrics}


def _finished_or_scored(name: str, task: Task, predictor: Predictor, depends_on: Mapping[str, Any], run_folder: Path) -> dict[str, Any]:
    mark, folder = fingerprint(depends_on), run_folder / "eval" / name
    finished = _read_json(folder / "scores.json")
    if finished is None or finished.get("fingerprint") != mark:
        log.info("eval %s", name)
        started = time.monotonic()
        scores = task(predictor, Progress(folder / "progress" / mark, run_folder))
        finished = {"fingerprint": mark, **depends_on, **_record(scores), "seconds": round(time.monotonic() - started, 1)}
        if scores.gallery is not None:
            _write_json(run_folder / "eval" / "gallery.json", scores.gallery)
        _write_outcomes(folder / OUTCOMES, scores.outcomes)
        _write_json(folder / "scores.json", finished)
    shutil.rmtree(folder / "progress", ignore_errors=True)  # token states of a large benchmark take gigabytes
    for metric, value in finished["metrics"].items():
        log.info("eval %s  %s %.4g", name, metric, value)
    return finished


def read_outcomes(run_folder: Path, task: str) -> dict[str, Outcomes]:
    """The metrics of a finished task item by item.

    Raises DataError when the task is not finished, or the file is damaged.
    """
    path = run_folder / "eval" / task / OUTCOMES
    try:
        with np.load(path, allow_pickle=False) as stored:
            names = [name.removesuffix(".picture") for name in stored.files if name.endswith(".picture")]
            return {name: Outcomes(stored[f"{name}.values"], stored[f"{name}.picture"]) for name in names}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: no readable outcomes ({error}); remove {path.parent} and run eval again") from error


def _write_outcomes(path: Path, outcomes: Mapping[str, Outcomes]) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **{f"{name}.{part}": array for name, of in outcomes.items() for part, array in of._asdict().items()})
    storage.write_bytes(str(path), buffer.getvalue())


def _record(scores: Scores) -> dict[str, Any]:
    return {"metrics": dict(scores.metrics), "counts": dict(scores.counts), "reference": {name: dict(row) for name, row in scores.reference.items()}}


def _options(task: Task) -> dict[str, Any]:
    assert is_dataclass(task), "a task's options are its dataclass fields"
    return asdict(cast(Any, task))


def _read_baselines(path: str) -> dict[str, dict[str, float]]:
    try:
        rows = json.loads(storage.read_bytes(path))
        return {str(name): {str(metric): float(value) for metric, value in row.items()} for name, row in rows.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(f'{path}: not a table of baselines ({error}); expected {{"name": {{"text_recall@1": 88.0}}}}') from error


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        record: dict[str, Any] = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return record


def _write_json(path: Path, value: Any) -> None:
    storage.write_bytes(str(path), json.dumps(value, indent=1).encode())
