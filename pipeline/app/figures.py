"""The figures of a finished run as one JSON file in the shape of docs/benchmarks, so that they can be committed with the command that made them."""

import json
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.app.run import STAGES
from pipeline.core import storage
from pipeline.core.errors import DataError
from pipeline.core.run_directory import RunDirectory

LIBRARIES = ("torch", "deepspeed", "timm", "img2dataset")


def write_figures(run_folder: Path, path: str, name: str, command: str) -> None:
    """Write `{"name", "command", "commit", "machine", "rows"}`; a row is one number of one stage, with no peer beside it.

    Raises DataError when no stage of the run is finished.
    """
    rows = list(_rows(RunDirectory(run_folder)))
    if not rows:
        raise DataError(f"{run_folder}: no finished stage, so there are no figures; run the stages first")
    record = {"name": name, "command": command, "commit": commit(), "machine": machine(), "rows": rows}
    storage.write_bytes(path, (json.dumps(record, indent=1) + "\n").encode())


def machine() -> dict[str, Any]:
    """Processor, cores, memory and versions: what a figure depends on besides the code."""
    model = next((line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), platform.processor())
    memory_kb = next((int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    versions = {library: metadata.version(library) for library in LIBRARIES}
    return {"processor": model, "cores": len(os.sched_getaffinity(0)), "memory_gb": round(memory_kb / 2**20), "python": platform.python_version(), **versions}


def _rows(directory: RunDirectory) -> Iterator[dict[str, Any]]:
    for stage in STAGES:
        record = directory.result(stage)
        if record is None:
            continue
        yield _row(f"{stage}/seconds", record["seconds"])
        for case, value in _numbers(record["result"], stage):
            yield _row(case, value)


def _row(case: str, value: float) -> dict[str, Any]:
    return {"case": case, "unit": _unit(case, value), "ours": value, "peer": None, "peer_name": None, "ratio": None, "note": ""}


def _unit(case: str, value: float) -> str:
    if case.endswith("/seconds"):
        return "s"
    if case.startswith("eval/") and ("recall" in case or case.endswith(("accuracy", "r_mean"))):
        return "%"
    return "count" if isinstance(value, int) else "nats" if "loss" in case else ""


def _numbers(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            if name != "settings":  # a configuration, not a result
                yield from _numbers(value, f"{prefix}/{name}")
        elif isinstance(value, int | float) and not isinstance(value, bool) and name != "seconds":  # the stage's own seconds are a row already
            yield f"{prefix}/{name}", value


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def commit(folder: Path = Path(__file__).parent) -> str:
    """The commit of the checkout that `folder` lies in, marked when files other than those of figures differ from it; empty outside a checkout."""
    name = _git(folder, "describe", "--always", "--abbrev=12")
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", ":/", ":!/docs/benchmarks")
    return f"{name}-dirty" if changed else name


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False).stdout.strip()
