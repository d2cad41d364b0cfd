"""The engine's own process: img2dataset's Reader, Resizer and distributor around our Downloader.

`python -m ingest.driver JOB`. A process of its own keeps what img2dataset drags in (wandb, albumentations, prints, a progress bar) out of
the command the user sees.
"""

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from ingest import lifeline
from ingest.config import IngestConfig
from ingest.work_folder import WorkFolder


@dataclass(frozen=True)
class Job:
    """What the engine is to do, as its parent writes it down."""

    config: dict[str, object]
    work_folder: str
    done_shards: list[int]
    parent_pid: int

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))


@contextlib.contextmanager
def without_torch() -> Iterator[None]:
    """Let webdataset, which img2dataset imports, take its path without torch: 2 s of CPU and 200 MB less in each process."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it phones home at each import otherwise
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["torch"]


def main(job_path: str) -> None:
    job = Job(**json.loads(Path(job_path).read_text()))
    lifeline.die_with(job.parent_pid)
    with without_torch():
        from img2dataset.distributor import multiprocessing_distributor
        from img2dataset.reader import Reader

        from ingest.downloader import COLUMNS, GuardedDownloader
    config, work_folder = IngestConfig.model_validate(job.config), WorkFolder(Path(job.work_folder))
    reader = Reader(
        str(work_folder.pair_table),
        input_format="parquet",
        url_col="url",
        caption_col=None,  # a list of captions is an extra column to img2dataset
        verify_hash_col=None,
        verify_hash_type=None,
        save_additional_columns=[column for column in COLUMNS if column != "url"],
        number_sample_per_shard=config.samples_per_shard,
        done_shards=set(job.done_shards),
        tmp_path=str(work_folder.rows),
    )
    multiprocessing_distributor(config.engine.processes, GuardedDownloader(config, work_folder, os.getpid()), reader, None, 1)


if __name__ == "__mp_main__":  # a worker, which is about to unpickle the downloader
    with without_torch():
        import ingest.downloader  # noqa: F401

if __name__ == "__main__":
    main(sys.argv[1])
