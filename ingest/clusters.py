"""Where workers run: img2dataset's three distributors, each with a session that finds this checkout."""

import contextlib
import io
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from ingest.config import EngineConfig

Distribute = Callable[[Any, Any], None]  # (downloader, reader)
ROOT = Path(__file__).parents[1]
PACKAGES = ("pipeline", "ingest", "shards")  # what a worker imports
SPARK_TASK_FAILURES = 4  # as on a cluster; Spark's local mode would give up at the first worker it loses
SHARDS_PER_SPARK_JOB = 1000  # img2dataset's default: a job ends when its slowest shard does


@contextlib.contextmanager
def processes(config: EngineConfig) -> Iterator[Distribute]:
    """Spawned processes on this machine."""
    from img2dataset.distributor import multiprocessing_distributor

    yield lambda downloader, reader: multiprocessing_distributor(config.processes, downloader, reader, None, 0)


@contextlib.contextmanager
def spark(config: EngineConfig) -> Iterator[Distribute]:
    """A Spark session: the cluster of `engine.cluster` (a master URL), or `processes` threads' worth of workers here."""
    from img2dataset.distributor import pyspark_distributor
    from pyspark.sql import SparkSession

    master = config.cluster or f"local[{config.processes},{SPARK_TASK_FAILURES}]"
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder, "albef.zip")
        archive.write_bytes(_zipped_packages())
        session = SparkSession.builder.master(master).appName("albef ingest").config("spark.ui.enabled", "false").getOrCreate()
        session.sparkContext.addPyFile(str(archive))
        try:
            yield lambda downloader, reader: pyspark_distributor(config.processes, downloader, reader, SHARDS_PER_SPARK_JOB, 0)
        finally:
            session.stop()


@contextlib.contextmanager
def ray(config: EngineConfig) -> Iterator[Distribute]:
    """A Ray cluster: the one at `engine.cluster` (an address), or one of `processes` workers here for as long as this takes."""
    import ray as library
    from img2dataset.distributor import ray_distributor

    # torch is not imported by our workers, and Ray must not ship the virtual environment along with the code
    packages = [str(ROOT / package) for package in PACKAGES]
    options: dict[str, Any] = {"address": config.cluster} if config.cluster else {"num_cpus": config.processes, "include_dashboard": False}
    library.init(runtime_env={"py_modules": packages, "env_vars": {"NO_ALBUMENTATIONS_UPDATE": "1"}}, log_to_driver=True, **options)
    try:
        yield lambda downloader, reader: ray_distributor(config.processes, downloader, reader, None, 0)
    finally:
        library.shutdown()


DISTRIBUTORS: dict[str, Callable[[EngineConfig], AbstractContextManager[Distribute]]] = {"multiprocessing": processes, "pyspark": spark, "ray": ray}


def _zipped_packages() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for package in PACKAGES:
            for path in sorted((ROOT / package).rglob("*.py")):
                archive.write(path, path.relative_to(ROOT))
    return buffer.getvalue()
