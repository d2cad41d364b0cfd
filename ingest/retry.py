"""Rows that failed in a way that may pass, once more: what they give becomes further shards of the same dataset.

Each round tries the rows of the round before that may pass, so the rows of a round follow from the newest manifest alone: an interrupted round
goes on when the same command runs again, and a finished one is followed by the next. A round's shards count when a manifest lists them.
"""

import json
import logging
import shutil
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ingest import duplicates, engine, ingest, published, purge
from ingest.config import IngestConfig
from ingest.hold import StillHeld, ingest_held
from ingest.outcomes import MAY_PASS, Outcome
from ingest.parts import Parts
from ingest.published import PublishedShard
from ingest.rounds import Round
from ingest.work_folder import WorkFolder
from pipeline.core import stopping, storage
from pipeline.core.errors import AlbefError, DataError
from shards import manifest

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)


def run(config: IngestConfig, run_folder: Path) -> ingest.Result:
    """Fetch what failed and may pass, and publish a manifest with the shards it gave; `retried` and `added` in the result count rows and samples.

    Raises:
        DataError: the dataset is not finished, or made from other lists or settings.
        BelowFloor: still fewer successes than `success_floor`.
        Stopped: asked to stop, or the storage went away; the same command continues.
    """
    started = time.monotonic()
    _, mark, work_folder = ingest.identified(config, run_folder)
    with ingest_held(config.output, config.engine, work_folder) as still_held:
        purge.complete(config.output)
        before = ingest.published_dataset(config.output, mark)
        if before is None:
            raise DataError(f"{config.output}: this dataset is not finished, so it is not known what failed; run albef ingest without --retry-failed first")
        failed = _failed(config, before)
        after = _fetched_again(config, before, failed, mark, work_folder, run_folder, still_held) if failed else before
        repeated = duplicates.report(config.output, after)
    retried, added = (sum(failed.values()), after.num_samples - before.num_samples)
    log.info("ingest: %s", f"{retried} rows tried again, {added} samples added" if failed else "nothing to retry")
    return ingest.result_of(config, after, repeated, time.monotonic() - started) | {"retried": retried, "added": added}


def _failed(config: IngestConfig, dataset: manifest.Manifest) -> Counter[str]:
    """The rows to try by the outcome they have."""
    return Counter(outcome for name in _newest_round(config, dataset) for outcome in _rows_to_retry(config.output, name)["outcome"].to_pylist())


def _newest_round(config: IngestConfig, dataset: manifest.Manifest) -> list[str]:
    """The names of its shards."""
    rounds = dataset.config.get("rounds", [])
    pictures = dataset.config["rows"]["pictures"]
    numbers = range(*rounds[-1]["shards"]) if rounds else range(-(-pictures // config.samples_per_shard))
    return [f"{number:05d}" for number in numbers]


def _rows_to_retry(output: str, name: str) -> "pa.Table":
    import pyarrow as pa
    import pyarrow.compute as pc

    rows = published.rows(output, name, ["uid", "outcome"])
    return rows.filter(pc.is_in(rows["outcome"], pa.array(sorted(MAY_PASS), pa.string())))


def _fetched_again(
    config: IngestConfig, before: manifest.Manifest, failed: Counter[str], mark: str, work_folder: WorkFolder, run_folder: Path, still_held: StillHeld
) -> manifest.Manifest:
    names = _newest_round(config, before)
    now = Round(f"{mark}-{before.number}", int(names[-1]) + 1, failed.total(), WorkFolder(work_folder.rounds / str(before.number)))
    _remove_rounds_but(now, work_folder)
    ingest.read_lists(config, work_folder, run_folder)
    _write_pair_table(config, names, now, work_folder, run_folder)
    log.info("ingest: trying %d rows again: %s", now.rows, ", ".join(f"{outcome} {rows}" for outcome, rows in failed.most_common()))
    with engine.stopping_resumably():
        shards = engine.fetch_missing(config, now, run_folder)
        still_held()
        after = storage.patiently(partial(_publish, config, before, failed, now, shards), config.engine.storage_patience_s)
        storage.patiently(engine.spool_of(config, now).remove, config.engine.storage_patience_s)
    shutil.rmtree(work_folder.rounds)
    return after


def _remove_rounds_but(now: Round, work_folder: WorkFolder) -> None:
    """What a round left whose manifest came out, or that a purge has overtaken: its journals hold pictures."""
    for folder in work_folder.rounds.glob("*"):
        if folder != now.work_folder.folder:
            shutil.rmtree(folder)


def _write_pair_table(config: IngestConfig, names: list[str], now: Round, work_folder: WorkFolder, run_folder: Path) -> None:
    """The rows of the lists' pair table that are tried again, in its order. In memory: their uids, some 80 bytes each, and a row group of the table."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    if now.work_folder.counts.exists():
        return
    uids = pa.chunked_array([chunk for name in names for chunk in _rows_to_retry(config.output, name)["uid"].chunks], pa.string()).combine_chunks()
    storage.remove_tree(str(now.work_folder.pair_table))
    rows = 0
    with Parts(str(now.work_folder.pair_table), config.samples_per_shard) as parts:
        for path in sorted(work_folder.pair_table.glob("*.parquet")):
            file = pq.ParquetFile(path)
            for group in range(file.num_row_groups):
                stopping.raise_if_stopping(run_folder)
                table = file.read_row_group(group)
                table = table.filter(pc.is_in(table["uid"], uids))
                parts.write(table)
                rows += table.num_rows
    if rows != now.rows:
        raise AlbefError(f"{config.output}: {now.rows} rows are to be tried again, {rows} of them are in the pair table")
    storage.write_bytes(str(now.work_folder.counts), json.dumps({"rows": rows}).encode())


def _publish(config: IngestConfig, before: manifest.Manifest, failed: Counter[str], now: Round, shards: dict[str, PublishedShard]) -> manifest.Manifest:
    outcomes, entries = ingest.totals(shards.values())
    if outcomes.total() != now.rows:
        raise AlbefError(f"{now.rows} rows were tried again, {outcomes.total()} have an outcome")
    newest = Counter(before.outcomes)
    newest.subtract(failed)
    newest.update(outcomes)
    numbers = now.shards(config.samples_per_shard)
    ingest.check_totals(before.config["rows"]["pictures"], newest, [*before.shards, *entries])
    record = {
        "shards": [numbers.start, numbers.stop],
        "retried": dict(failed.most_common()),
        "outcomes": dict(outcomes.most_common()),
        "added": outcomes[Outcome.SUCCESS.value],
        "fetch": config.fetch.model_dump(mode="json"),
    }
    rounds = [*before.config.get("rounds", []), record]
    return manifest.publish(config.output, [*before.shards, *entries], dict((+newest).most_common()), before.config | {"rounds": rounds})
