"""The parent's side of the engine: start it, watch it, start it again when a worker was lost, and say why it could not go on."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from ingest import progress
from ingest.config import IngestConfig
from ingest.display import Display
from ingest.driver import Job
from ingest.published import PublishedShard
from ingest.work_folder import WorkFolder
from pipeline.core import stopping
from pipeline.core.errors import Stopped

LOOK_EVERY_S = 0.2
SILENCE_S = 120.0  # workers save their progress twice a second; img2dataset's pool hangs for ever when a worker dies inside its queue
STOP_WAIT_S = 30.0
STARTS_WITHOUT_PROGRESS = 3
LOG_TAIL_BYTES = 3000


def fetch_missing(
    config: IngestConfig, work_folder: WorkFolder, rows: int, published: Callable[[], dict[str, PublishedShard]], run_folder: Path
) -> dict[str, PublishedShard]:
    """Run the engine until every shard of the pair table's `rows` rows is published; returns all shards.

    Raises:
        Stopped: asked to, or the storage failed.
        RuntimeError: a bug of ours, or a shard that kills its worker every time.
    """
    shards = published()
    total = -(-rows // config.samples_per_shard)
    fruitless = 0
    while len(shards) < total:
        with _started(config, work_folder, shards) as engine, Display(rows, _outcomes(shards).total()) as display:
            lost = _watch(engine, work_folder, _outcomes(shards), display, run_folder)
        before, shards = len(shards), published()
        stopping.raise_if_stopping(run_folder)
        _raise_failures(work_folder)
        fruitless = 0 if len(shards) > before else fruitless + 1
        if len(shards) < total and (lost is None or fruitless == STARTS_WITHOUT_PROGRESS):
            raise RuntimeError(f"the engine ended ({lost or engine.returncode}) with {len(shards)} of {total} shards done; {_log_tail(work_folder)}")
    return shards


@contextlib.contextmanager
def _started(config: IngestConfig, work_folder: WorkFolder, done: dict[str, PublishedShard]) -> Iterator[subprocess.Popen[bytes]]:
    """The engine, in a process group of its own: Ctrl-C reaches the parent alone, which stops it in good order."""
    work_folder.clear_for_a_start()
    job = work_folder.folder / "job.json"
    Job(config.model_dump(mode="json"), str(work_folder.folder), sorted(int(name) for name in done), os.getpid()).write(job)
    root = str(Path(__file__).parents[1])  # the workers must import this checkout, whatever the current folder
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
    with work_folder.engine_log.open("ab") as log:
        engine = subprocess.Popen(
            [sys.executable, "-m", "ingest.driver", str(job)], stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0, env=environment
        )
    try:
        yield engine
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(engine.pid, signal.SIGKILL)  # journals and atomic writes make this safe at any moment
        engine.wait()


def _watch(engine: subprocess.Popen[bytes], work_folder: WorkFolder, done: Counter[str], display: Display, run_folder: Path) -> str | None:
    """Wait for the engine's end; returns what was lost when it can no longer end by itself."""
    started = time.time()
    while engine.poll() is None:
        if stopping.stop_reason(run_folder):
            work_folder.ask_to_stop()
            with contextlib.suppress(subprocess.TimeoutExpired):
                engine.wait(STOP_WAIT_S)
            return None
        shards = progress.read_all(work_folder.progress)
        display.update(sum((shard.outcomes for shard in shards), done.copy()))
        if lost := progress.lost_workers(shards):
            return f"lost the worker of shard {lost[0].shard}"
        if time.time() - max(started, progress.newest_beat(work_folder.progress)) > SILENCE_S:
            return f"no sign of life for {SILENCE_S:.0f} s"
        time.sleep(LOOK_EVERY_S)
    return None if engine.returncode >= 0 else f"killed by signal {-engine.returncode}"


def _outcomes(shards: dict[str, PublishedShard]) -> Counter[str]:
    return sum((Counter(shard.outcomes) for shard in shards.values()), Counter[str]())


def _raise_failures(work_folder: WorkFolder) -> None:
    failures = work_folder.failures()
    for failure in failures:
        if failure["kind"] == "error":
            raise RuntimeError(f"shard {failure['shard']} failed:\n{failure['text']}")
    if failures:
        raise Stopped(f"stopped early: shard {failures[0]['shard']}: {failures[0]['text']}; run the same command again when that is mended")


def _log_tail(work_folder: WorkFolder) -> str:
    text = work_folder.engine_log.read_bytes()[-LOG_TAIL_BYTES:].decode("utf-8", "replace")
    return f"the end of {work_folder.engine_log}:\n{text}"
