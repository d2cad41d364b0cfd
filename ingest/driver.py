"""The engine's own process: img2dataset's Reader and distributor around our Downloader.

`python -m ingest.driver JOB`. A process of its own keeps what img2dataset drags in (wandb, albumentations, prints, a progress bar) out of
the command the user sees.
"""

import json
import os
import re
import sys
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

from ingest.config import IngestConfig
from ingest.spool import Spool
from pipeline.core import lifeline, storage

SHARD_FAILED = re.compile(r"ShardFailed: (\{.*\})")


@dataclass(frozen=True)
class Job:
    """What the engine is to do, as its parent writes it down."""

    config: dict[str, object]
    pair_table: str
    first_shard: int
    spool: str
    done_shards: list[int]
    parent_pid: int
    failure: str  # where to say why it could not

    def write(self, path: Path) -> None:
        storage.write_bytes(str(path), json.dumps(asdict(self)).encode())


def main(job_path: str) -> None:
    job = Job(**json.loads(Path(job_path).read_text()))
    lifeline.die_with(job.parent_pid)
    try:
        _distribute(job)
    except Exception as error:
        storage.write_bytes(job.failure, json.dumps(_failure(error)).encode())
        raise


def _distribute(job: Job) -> None:
    from ingest import clusters, downloader
    from ingest.pair_table import COLUMNS

    config, spool = IngestConfig.model_validate(job.config), Spool(job.spool)
    with clusters.DISTRIBUTORS[config.engine.distributor](config.engine) as distribute:
        from img2dataset.reader import Reader

        reader = Reader(
            job.pair_table,
            input_format="parquet",
            url_col="url",
            caption_col=None,  # a list of captions is an extra column to img2dataset
            verify_hash_col=None,
            verify_hash_type=None,
            save_additional_columns=[column for column in COLUMNS if column != "url"],
            number_sample_per_shard=config.samples_per_shard,
            done_shards=set(job.done_shards),
            tmp_path=spool.rows,
            start_shard_id=job.first_shard,
        )
        children = config.engine.distributor == "multiprocessing"
        distribute(downloader.GuardedDownloader(config, spool, os.getpid() if children else None, holders_are_dead=children), reader)


def _failure(error: Exception) -> dict[str, str]:
    """What a worker said, however deep the cluster's library wrapped it, or the driver's own trouble."""
    text = "".join(traceback.format_exception(error))
    found = SHARD_FAILED.search(text)
    failure: dict[str, str] = json.loads(found[1]) if found else {"shard": "-", "kind": "error", "text": text}
    return failure


if __name__ == "__main__":
    main(sys.argv[1])
