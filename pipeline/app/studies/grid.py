"""The runs of a study: each an ordinary `albef run` in a folder of its own, a few at a time; finished ones are skipped, interrupted ones go on."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.app.config import RunConfig
from pipeline.app.run import run as walk
from pipeline.core import config as configuration
from pipeline.core import stopping, storage
from pipeline.core.errors import ConfigError, DataError, Stopped
from pipeline.core.run_directory import RunDirectory

log = logging.getLogger(__name__)
Overrides = tuple[str, ...]
WITHOUT_TRAINING: Overrides = ("training=null", "eval=null")
WITHOUT_DATA: Overrides = ("scenes=null", "openclipart=null", "pictures=null", "ingest=null")
LOOK_EVERY_S = 0.5


@dataclass(frozen=True)
class Run:
    """One variant of the base configuration with one seed."""

    variant: str
    seed: int
    config: RunConfig

    @property
    def folder(self) -> Path:
        return Path(self.config.run.folder)

    def curve(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of a figure taken while training; where a run went on after a kill, its last word on a step."""
        lines = (json.loads(line) for line in (self.folder / "train" / "metrics.jsonl").read_text().splitlines() if line.endswith("}"))
        found = {line["step"]: line[name] for line in lines if name in line}
        return sorted(found), [found[step] for step in sorted(found)]

    def minutes(self) -> float:
        """Wall time of every optimizer step, however often the run was interrupted, and of the evaluation."""
        assert self.config.training is not None
        steps_s = sum(self.config.training.global_batch_size / pairs_per_s for pairs_per_s in self.curve("pairs_per_s")[1])
        evaluated = RunDirectory(self.folder).result("eval")
        return (steps_s + (evaluated["seconds"] if evaluated else 0.0)) / 60


def runs_of(name: str, base: Path, overrides: Sequence[str], variants: Mapping[str, Overrides], seeds: Sequence[int]) -> list[Run]:
    """One run for each variant and seed, seed by seed, so that an unfinished study has whole tables of fewer seeds.

    Args:
        name: the study's; its runs lie in `studies/<name>` of the base's run directory.
        overrides: of the base, for all runs.
        variants: name of the run's folder -> what it changes.

    Raises ConfigError when the base has no training or eval section, or a variant does not fit.
    """
    config = configuration.load(RunConfig, base, overrides)
    if config.training is None or config.eval is None:
        raise ConfigError(f"{base}: a study trains and evaluates, so it needs a training and an eval section")
    folder = folder_of(name, config)
    return [
        Run(variant, seed, configuration.load(RunConfig, base, [*overrides, *changes, *WITHOUT_DATA, *_place_and_seed(folder, variant, seed)]))
        for seed in seeds
        for variant, changes in variants.items()
    ]


def folder_of(name: str, base: RunConfig) -> Path:
    """Where a study keeps its runs, and its page where nothing else is asked for."""
    return Path(base.run.folder) / "studies" / name


def carry_out(base: Path, overrides: Sequence[str], runs: Sequence[Run], jobs: int) -> None:
    """Draw and ingest the base's world, then all runs, `jobs` at a time with a thread each.

    Raises:
        DataError: a run failed; its last line and where its output is.
        Stopped: asked to stop; the runs under way have saved, and the same call continues.
    """
    walk(configuration.load(RunConfig, base, [*overrides, *WITHOUT_TRAINING]))
    waiting, running = list(runs), list[tuple[Run, subprocess.Popen[bytes]]]()
    try:
        while waiting or running:
            stopping.raise_if_stopping(None)
            while waiting and len(running) < jobs:
                running.append((waiting[0], _started(waiting.pop(0))))
            for run, process in [pair for pair in running if pair[1].poll() is not None]:
                running.remove((run, process))
                _check(run, process.returncode)
                log.info("study: %s, seed %d done (%.1f minutes); %d of %d left", run.variant, run.seed, run.minutes(), len(waiting) + len(running), len(runs))
            time.sleep(LOOK_EVERY_S)
    finally:
        for _, process in running:
            process.send_signal(signal.SIGTERM)
        for _, process in running:
            process.wait()


def _place_and_seed(folder: Path, variant: str, seed: int) -> Overrides:
    return f"run.folder={folder / f'{variant}-seed{seed}'}", f"training.seed={seed}"


def _started(run: Run) -> "subprocess.Popen[bytes]":
    """`albef run` on the run's resolved configuration; it dies with this process, however that dies."""
    config = run.folder / "run.yaml"
    storage.write_bytes(str(config), configuration.dump(run.config).encode())
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with _output(run).open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "pipeline.app.studies.child", str(os.getpid()), str(config)], env=environment, stdout=output, stderr=subprocess.STDOUT
        )


def _check(run: Run, code: int) -> None:
    if code == 0:
        return
    lines = _output(run).read_text(errors="replace").splitlines() or ["(no output)"]
    if code == Stopped.exit_code:
        raise Stopped(f"{run.folder}: {lines[-1].removeprefix('albef: ')}; run the same command again to continue")
    raise DataError(f"{run.folder}: the run ended with exit code {code}: {lines[-1].removeprefix('albef: ')} (all of it: {_output(run)})")


def _output(run: Run) -> Path:
    return run.folder / "output.txt"
