"""The parent's side of the engine: start it, watch it, start it again when a worker was lost, and say why it could not go on."""

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ingest import progress
from ingest.config import EngineConfig, IngestConfig
from ingest.display import Display
from ingest.driver import Job
from ingest.published import PublishedShard
from ingest.rounds import Round, done_shards
from ingest.spool import Spool
from ingest.work_folder import WorkFolder
from pipeline.core import stopping, storage
from pipeline.core.errors import ConfigError, Stopped, StorageUnreachable

LOOK_EVERY_S = 0.2
SILENCE_S = 120.0  # workers save their progress every few seconds; img2dataset's pool hangs for ever when a worker dies inside its queue
CLUSTER_START_S = 300.0  # Spark and Ray may have to wait for machines
STOP_WAIT_S = 30.0
STARTS_WITHOUT_PROGRESS = 3
LOG_TAIL_BYTES = 3000
EXTRAS = {"pyspark": "spark", "ray": "ray"}


def check_distributor(config: EngineConfig) -> None:
    """Raises ConfigError when its library, or Spark's Java, is not there: img2dataset itself would do nothing and call it done."""
    extra = EXTRAS.get(config.distributor)
    if extra is not None and importlib.util.find_spec(config.distributor) is None:
        raise ConfigError(f"ingest.engine.distributor is {config.distributor}, which is not installed; pip install -e '.[{extra}]'")
    if config.distributor == "pyspark" and shutil.which("java") is None and "JAVA_HOME" not in os.environ:
        raise ConfigError("ingest.engine.distributor is pyspark, which needs Java, and there is none; install a Java runtime or set JAVA_HOME")


def spool_of(config: IngestConfig, now: Round) -> Spool:
    """Where workers share what is not published yet."""
    if config.engine.spool is not None:
        return Spool(storage.join(config.engine.spool, now.mark))
    if config.engine.distributor == "multiprocessing":
        return Spool(str(now.work_folder.folder / "spool"))
    return Spool(storage.join(config.output, f"spool-{now.mark}"))


@contextlib.contextmanager
def stopping_resumably() -> Iterator[None]:
    """A storage that stays away in the block stops the command, which goes on when it is started again."""
    try:
        yield
    except StorageUnreachable as error:
        raise Stopped(f"stopped early: {error}; run the same command again when that is mended") from error


def fetch_missing(config: IngestConfig, now: Round, run_folder: Path) -> dict[str, PublishedShard]:
    """Run the engine until every shard of the round is published; returns all its shards.

    Raises:
        ConfigError: the distributor is not installed.
        Stopped: asked to, or a worker's storage failed.
        StorageUnreachable: it does not answer this process.
        RuntimeError: a bug of ours, or a shard that kills its worker every time.
    """
    check_distributor(config.engine)
    if config.fetch.ca_file is not None:
        from ingest.fetch import tls_context

        tls_context(config.fetch.ca_file)  # a file that is no certificate is named here, not by every worker
    spool = spool_of(config, now)
    published = partial(storage.patiently, partial(done_shards, config, now), config.engine.storage_patience_s)
    shards = published()
    total = len(now.shards(config.samples_per_shard))
    fruitless = 0
    with Display(now.rows, _outcomes(shards), run_folder) as display:
        while len(shards) < total:
            with _started(config, now, spool, shards) as engine:
                lost = _watch(engine, config.engine, spool, _outcomes(shards), display, run_folder)
            _raise_failure(now.work_folder)
            before, shards = len(shards), published()
            stopping.raise_if_stopping(run_folder)
            fruitless = 0 if len(shards) > before else fruitless + 1
            if len(shards) < total and (lost is None or fruitless == STARTS_WITHOUT_PROGRESS):
                raise RuntimeError(f"the engine ended ({lost or engine.returncode}) with {len(shards)} of {total} shards done; {_log_tail(now.work_folder)}")
        display.finish(_outcomes(shards))
    return shards


@contextlib.contextmanager
def _started(config: IngestConfig, now: Round, spool: Spool, done: dict[str, PublishedShard]) -> Iterator["subprocess.Popen[bytes]"]:
    """The engine, in a process group of its own: Ctrl-C reaches the parent alone, which stops it in good order."""
    storage.patiently(spool.clear_for_a_start, config.engine.storage_patience_s)
    work_folder = now.work_folder
    work_folder.failure.unlink(missing_ok=True)
    done_shards = sorted(int(name) for name in done)
    job = Job(config.model_dump(mode="json"), str(work_folder.pair_table), now.first_shard, spool.folder, done_shards, os.getpid(), str(work_folder.failure))
    job.write(work_folder.job)
    root = str(Path(__file__).parents[1])  # the workers must import this checkout, whatever the current folder
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])), "PYSPARK_PYTHON": sys.executable}
    with work_folder.engine_log.open("ab") as log:
        engine = subprocess.Popen(
            [sys.executable, "-m", "ingest.driver", str(work_folder.job)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            process_group=0,
            env=environment,
        )
    try:
        yield engine
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(engine.pid, signal.SIGKILL)  # journals, leases and atomic writes make this safe at any moment
        engine.wait()


def _watch(engine: "subprocess.Popen[bytes]", config: EngineConfig, spool: Spool, done: Counter[str], display: Display, run_folder: Path) -> str | None:
    """Wait for the engine's end; returns what was lost when it can no longer end by itself."""
    here = config.distributor == "multiprocessing"
    seen: dict[str, int] = {}
    last_sign, last_look = time.monotonic() + (0.0 if here else CLUSTER_START_S), 0.0
    while engine.poll() is None:
        if stopping.stop_reason(run_folder):
            with contextlib.suppress(StorageUnreachable, subprocess.TimeoutExpired):
                spool.ask_to_stop()
                engine.wait(STOP_WAIT_S)
            display.update(done, _progress(spool) or [])  # with what was in flight
            return None
        time.sleep(LOOK_EVERY_S)
        if time.monotonic() - last_look < spool.look_every_s:
            continue
        shards = _progress(spool)
        last_look = time.monotonic()
        if shards is not None:
            beats = {shard.shard: shard.beat for shard in shards}
            last_sign, seen = (last_sign if beats == seen else max(last_sign, last_look)), beats
            display.update(done, shards)
            if here and (lost := progress.lost_workers(shards)):
                return f"lost the worker of shard {lost[0].shard}"
        if last_look - last_sign > SILENCE_S:
            return f"no sign of life for {SILENCE_S:.0f} s"
    return None if engine.returncode >= 0 else f"killed by signal {-engine.returncode}"


def _progress(spool: Spool) -> list[progress.ShardProgress] | None:
    """None while the storage is away: the workers wait for it too, and say so when they give up."""
    try:
        return progress.read_all(spool.progress)
    except StorageUnreachable:
        return None


def _outcomes(shards: dict[str, PublishedShard]) -> Counter[str]:
    return sum((Counter(shard.outcomes) for shard in shards.values()), Counter[str]())


def _raise_failure(work_folder: WorkFolder) -> None:
    if not work_folder.failure.exists():
        return
    failure = json.loads(work_folder.failure.read_bytes())
    if failure["kind"] == "error":
        raise RuntimeError(f"shard {failure['shard']} failed:\n{failure['text']}")
    raise Stopped(f"stopped early: shard {failure['shard']}: {failure['text']}; run the same command again when that is mended")


def _log_tail(work_folder: WorkFolder) -> str:
    text = work_folder.engine_log.read_bytes()[-LOG_TAIL_BYTES:].decode("utf-8", "replace")
    return f"the end of {work_folder.engine_log}:\n{text}"
