"""Ingest: lists of picture URLs in; tars, index, outcome tables and a manifest out. The same command goes on where it was interrupted."""

import json
import logging
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from ingest import duplicates, engine, inputs, pair_table, purge, screening
from ingest.config import IngestConfig
from ingest.hold import StillHeld, ingest_held
from ingest.outcomes import Outcome
from ingest.published import PublishedShard
from ingest.rounds import Round
from ingest.row_counts import RowCounts
from ingest.status import summary
from ingest.work_folder import WorkFolder
from pipeline.core import stopping, storage
from pipeline.core.errors import AlbefError, BelowFloor
from pipeline.core.run_directory import fingerprint
from shards import manifest

log = logging.getLogger(__name__)

Result = dict[str, Any]


def run(config: IngestConfig, run_folder: Path) -> Result:
    """Fetch what is missing and publish the dataset.

    Returns outcome counts, row counts, shards, samples, captions, the dataset's fingerprint and the seconds this call took.

    Raises:
        DataError: a list is missing or unusable, or the output cannot be written or holds another dataset.
        BelowFloor: published, with fewer successes than `success_floor`.
        Stopped: asked to stop, or the storage went away; the same command continues.
    """
    started = time.monotonic()
    made_from, mark, work_folder = identified(config, run_folder)
    with ingest_held(config.output, config.engine, work_folder) as still_held:
        inputs.claim_output(config.output, made_from)
        purge.complete(config.output)
        dataset = published_dataset(config.output, mark)
        if dataset is None:
            dataset = _build(config, mark, work_folder, run_folder, still_held)
        else:
            log.info("ingest: %s is finished, nothing to fetch", config.output)
        _warn_of_blocked(config)
        repeated = duplicates.report(config.output, dataset)
    return result_of(config, dataset, repeated, time.monotonic() - started)


def identified(config: IngestConfig, run_folder: Path) -> tuple[dict[str, Any], str, WorkFolder]:
    """What the dataset is made from, the fingerprint of that, and the folder to work in, once the output is known to be free for them.

    Raises:
        DataError: a list is missing, or the output holds another dataset.
    """
    screening.read(config)  # a list that cannot be used is named here, not by every worker
    made_from = inputs.of(config)
    mark = fingerprint(made_from)
    inputs.check_output(config.output, made_from)
    return made_from, mark, WorkFolder((run_folder / "ingest" / mark).absolute())


def _build(config: IngestConfig, mark: str, work_folder: WorkFolder, run_folder: Path, still_held: StillHeld) -> manifest.Manifest:
    counts = read_lists(config, work_folder, run_folder)
    log.info("ingest: %d rows, %d pictures with %d captions, rejected %s", counts.rows, counts.pictures, counts.captions, counts.rejected or "none")
    stopping.raise_if_stopping(run_folder)
    whole = Round(mark, 0, counts.pictures, work_folder)
    with engine.stopping_resumably():
        shards = engine.fetch_missing(config, whole, run_folder)
        still_held()
        dataset = storage.patiently(partial(_publish, config, mark, work_folder, counts, shards), config.engine.storage_patience_s)
        storage.patiently(engine.spool_of(config, whole).remove, config.engine.storage_patience_s)
    return dataset


def _warn_of_blocked(config: IngestConfig) -> None:
    """A block list may have grown since the pictures were stored."""
    if config.blocked and (found := len(purge.found(config.output, config.blocked))):
        command = f"albef ingest purge {config.output} {' '.join(config.blocked)}"
        log.warning("ingest: %d pictures of the dataset are on the lists of ingest.blocked now; take them out with: %s", found, command)


def published_dataset(output: str, mark: str) -> manifest.Manifest | None:
    """The newest dataset in the folder, if it is made from these lists and settings."""
    if manifest.newest_number(output) is None:
        return None
    found = manifest.read_manifest(output)
    return found if found.config.get("fingerprint") == mark else None


def read_lists(config: IngestConfig, work_folder: WorkFolder, run_folder: Path) -> RowCounts:
    """Make the pair table unless the work folder has it."""
    if work_folder.counts.exists():
        return RowCounts.from_json(json.loads(work_folder.counts.read_bytes()))
    table, rejected = str(work_folder.pair_table), str(work_folder.rejected)
    between = partial(stopping.raise_if_stopping, run_folder)
    counts = pair_table.build(config.sources, config.filters, config.samples_per_shard, table, rejected, work_folder.pair_table_scratch, between)
    storage.write_bytes(str(work_folder.counts), json.dumps(asdict(counts)).encode())
    return counts


def _publish(config: IngestConfig, mark: str, work_folder: WorkFolder, counts: RowCounts, shards: dict[str, PublishedShard]) -> manifest.Manifest:
    outcomes, entries = totals(shards.values())
    check_totals(counts.pictures, outcomes, entries)
    storage.write_bytes(storage.join(config.output, "rejected.parquet"), work_folder.rejected.read_bytes())
    record = {"fingerprint": mark, "rows": asdict(counts), "ingest": config.model_dump(mode="json")}
    return manifest.publish(config.output, entries, dict(outcomes.most_common()), record)


def totals(shards: Iterable[PublishedShard]) -> tuple[Counter[str], list[manifest.ShardEntry]]:
    """The outcomes of all their rows, and those that have a tar."""
    found = list(shards)
    outcomes = sum((Counter(shard.outcomes) for shard in found), Counter[str]())
    return outcomes, [shard.entry for shard in found if shard.entry is not None]


def check_totals(pictures: int, outcomes: Counter[str], entries: Iterable[manifest.ShardEntry]) -> None:
    """Raises AlbefError when a row was lost or counted twice."""
    samples = sum(entry.samples for entry in entries)
    if outcomes.total() != pictures or samples != outcomes[Outcome.SUCCESS.value]:
        raise AlbefError(f"{pictures} pictures were listed, {outcomes.total()} have an outcome; {samples} samples for {dict(outcomes)}")


def result_of(config: IngestConfig, dataset: manifest.Manifest, repeated: duplicates.Totals, seconds: float) -> Result:
    """What a stage tells of its dataset.

    Raises:
        BelowFloor: fewer successes than `success_floor`.
    """
    counts = {"shards": len(dataset.shards), "samples": dataset.num_samples, "captions": dataset.num_captions}
    _check_floor(config, dataset)
    told = {"outcomes": dataset.outcomes, "rows": dataset.config["rows"], **counts, "duplicates": repeated}
    return told | {"fingerprint": dataset.fingerprint, "seconds": round(seconds, 1)}


def _check_floor(config: IngestConfig, dataset: manifest.Manifest) -> None:
    outcomes = Counter(dataset.outcomes)
    rate = outcomes[Outcome.SUCCESS.value] / outcomes.total()
    log.info("ingest: %d samples in %d shards, %s", dataset.num_samples, len(dataset.shards), summary(outcomes))
    if not dataset.num_samples:
        log.warning("ingest: the dataset is empty; outcomes/ says why, row by row. Set ingest.success_floor to end with exit code 3 then")
    if rate < config.success_floor:
        raise BelowFloor(f"ingest: {summary(outcomes)}; ingest.success_floor asks for {100 * config.success_floor:g} %; published all the same")
