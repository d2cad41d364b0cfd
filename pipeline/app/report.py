"""The report of a run: one HTML file with everything in it, made from the files of the run directory alone."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from pipeline.app.figures import machine
from pipeline.app.ingest_page import ingest_page
from pipeline.app.plots import Curves, loss_plot, recall_plot, schedule_plot, throughput_plot
from pipeline.core import storage
from pipeline.core.run_directory import RunDirectory

RECALLS = ("text_recall@1", "text_recall@5", "text_recall@10", "image_recall@1", "image_recall@5", "image_recall@10")
STAGE_NAMES = {"scenes": "draw the world", "openclipart": "fetch openclipart", "ingest": "ingest", "train": "train", "eval": "evaluate"}


@dataclass(frozen=True)
class TableRow:
    """A line of the retrieval table: recalls in percent, None where unknown; `ours` sets our own lines off from reference ones."""

    name: str
    values: tuple[float | None, ...]
    ours: bool


def write_report(run_folder: Path) -> Path:
    """Write `<run_folder>/report.html` and return its path; a stage that has not run leaves a line that says so."""
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["thousands"] = lambda number: f"{number:,}"
    html = environment.get_template("report.html.jinja").render(**_context(RunDirectory(run_folder)))
    path = run_folder / "report.html"
    storage.write_bytes(str(path), html.encode())
    return path


def _context(directory: RunDirectory) -> dict[str, Any]:
    records = {stage: directory.result(stage) for stage in STAGE_NAMES}
    results = _read_json(directory.path / "eval" / "results.json")
    config = directory.path / "config.yaml"
    return {
        "name": directory.path.name,
        "machine": machine(),
        "durations": [(STAGE_NAMES[stage], record["seconds"]) for stage, record in records.items() if record],
        "ingest": ingest_page(records["ingest"], directory.path),
        "training": _training(directory.path / "train" / "metrics.jsonl", records["train"]),
        "quarantine": _read_json(directory.path / "train" / "quarantine.json"),
        "retrieval": _retrieval(results),
        "contrast": _contrast(results),
        "recalls": RECALLS,
        "gallery": _read_json(directory.path / "eval" / "gallery.json") if results else None,
        "checkpoint": results["checkpoint"] if results else None,
        "config": config.read_text() if config.exists() else "",
    }


def _training(metrics: Path, record: dict[str, Any] | None) -> dict[str, Any] | None:
    if not metrics.exists():
        return None
    lines = [json.loads(line) for line in metrics.read_text().splitlines() if line.endswith("}")]
    curves = Curves([line for line in lines if "loss/total" in line], [line for line in lines if any(name.startswith("val/") for name in line)])
    if not curves.steps:
        return None
    plots = [("Losses", loss_plot(curves)), ("Learning rate and alpha", schedule_plot(curves)), ("Throughput", throughput_plot(curves))]
    if curves.validation:
        plots.insert(1, ("Retrieval on the validation split while training (ITC)", recall_plot(curves)))
    return {
        "plots": plots,
        "steps": curves.steps[-1]["step"],
        "skipped": int(curves.steps[-1]["skipped_steps"]),
        "pairs_per_s": curves.median("pairs_per_s"),
        "data_wait_share": 100 * curves.data_wait_share(),
        "data_wait_ms": [1000 * curves.percentile("data_wait_s", percent) for percent in (50, 99)],
        "finished": record is not None,
    }


def _retrieval(results: dict[str, Any] | None) -> dict[str, Any] | None:
    task = results["tasks"].get("retrieval") if results else None
    if results is None or task is None:
        return None
    metrics = task["metrics"]
    rows = [TableRow("ITC ranking", _recalls(metrics, "itc/"), ours=True)]
    if any(name.startswith("reranked/") for name in metrics):
        rows.append(TableRow(f"ITM re-ranking of the best {task['options']['k_test']}", _recalls(metrics, "reranked/"), ours=True))
    rows += [TableRow(name, _recalls(row, ""), ours=False) for name, row in {**task["reference"], **results["reference"]}.items()]
    return {
        "rows": rows,
        "counts": task["counts"],
        "itm": {name: metrics[name] for name in metrics if name.startswith("itm_")},
        "split": task["options"]["split"],
    }


def _recalls(values: dict[str, float], prefix: str) -> tuple[float | None, ...]:
    return tuple(values.get(prefix + name) for name in RECALLS)


def _contrast(results: dict[str, Any] | None) -> list[tuple[str, int, float, float]] | None:
    """(kind, pairs, accuracy by ITC, accuracy by ITM) of each contrast file."""
    task = results["tasks"].get("contrast") if results else None
    if task is None:
        return None
    kinds = sorted({name.rpartition("/")[0] for name in task["metrics"]})
    return [(kind.replace("_", " "), task["counts"][f"{kind}/pairs"], task["metrics"][f"{kind}/itc"], task["metrics"][f"{kind}/itm"]) for kind in kinds]


def _read_json(path: Path) -> dict[str, Any] | None:
    value: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
    return value
