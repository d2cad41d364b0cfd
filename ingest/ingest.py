"""Ingest: lists of picture URLs in; tars, index, outcome tables and a manifest out. The same command goes on where it was interrupted."""

import contextlib
import json
import logging
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from ingest import engine, lease, pair_table, published
from ingest.config import IngestConfig
from ingest.display import summary
from ingest.outcomes import Outcome
from ingest.published import PublishedShard
from ingest.row_counts import RowCounts
from ingest.work_folder import WorkFolder
from pipeline.core import stopping, storage
from pipeline.core.errors import AlbefError, BelowFloor, DataError, Stopped, StorageUnreachable
from pipeline.core.run_directory import RunDirectory, fingerprint
from shards import manifest

log = logging.getLogger(__name__)

Result = dict[str, Any]
RECORD = "ingest.json"  # in the dataset folder: which lists and settings it is made from
# What decides which sample lies where and what its bytes are; everything else may change between two starts.
SETTINGS_OF_THE_DATA = ("samples_per_shard", "filters", "store")


def run(config: IngestConfig, run_folder: Path) -> Result:
    """Fetch what is missing and publish the dataset.

    Returns outcome counts, row counts, shards, samples, captions, the dataset's fingerprint and the seconds this call took.

    Raises:
        DataError: a list is missing or unusable, or the output cannot be written or holds another dataset.
        BelowFloor: published, with fewer successes than `success_floor`.
        Stopped: asked to stop, or the storage went away; the same command continues.
    """
    started = time.monotonic()
    inputs = _inputs(config)
    mark = fingerprint(inputs)
    _claim_output(config.output, inputs)
    work_folder = WorkFolder((run_folder / "ingest" / mark).absolute())
    with _held(config, work_folder):
        dataset = _published_dataset(config.output, mark)
        if dataset is None:
            dataset = _build(config, mark, work_folder, run_folder)
        else:
            log.info("ingest: %s is finished, nothing to fetch", config.output)
    result = _result(dataset, time.monotonic() - started)
    _check_floor(config, dataset)
    return result


def _build(config: IngestConfig, mark: str, work_folder: WorkFolder, run_folder: Path) -> manifest.Manifest:
    counts = _pair_table(config, work_folder, run_folder)
    log.info("ingest: %d rows, %d pictures with %d captions, rejected %s", counts.rows, counts.pictures, counts.captions, counts.rejected or "none")
    stopping.raise_if_stopping(run_folder)
    spool = engine.spool_of(config, work_folder, mark)
    try:
        done_shards = partial(storage.patiently, partial(_done_shards, config, counts.pictures), config.engine.storage_patience_s)
        shards = engine.fetch_missing(config, work_folder, spool, counts.pictures, done_shards, run_folder)
        dataset = storage.patiently(partial(_publish, config, mark, work_folder, counts, shards), config.engine.storage_patience_s)
        storage.patiently(spool.remove, config.engine.storage_patience_s)
    except StorageUnreachable as error:
        raise Stopped(f"stopped early: {error}; run the same command again when that is mended") from error
    return dataset


def _inputs(config: IngestConfig) -> dict[str, Any]:
    """Everything the data depends on.

    Raises:
        DataError: a list or an archive is missing.
    """
    return {"sources": [source.mark() for source in config.sources]} | config.model_dump(mode="json", include=set(SETTINGS_OF_THE_DATA))


def _claim_output(output: str, inputs: dict[str, Any]) -> None:
    """Refuse a folder with other data; otherwise write the record, which also proves before any fetch that the place can be written.

    Raises:
        DataError: the folder holds another dataset, or cannot be written.
    """
    path = storage.join(output, RECORD)
    if storage.exists(path):
        before = json.loads(storage.read_bytes(path))
        for key, value in inputs.items():
            if before.get(key) != value:
                change = "other lists" if key == "sources" else f"{key} {before.get(key)}, now {value}"
                raise DataError(f"{output}: holds a dataset made from {change}; choose another output folder or take back the change")
    elif manifest.newest_number(output) is not None or any(name.endswith(".tar") for name in storage.list_files(output)):
        raise DataError(f"{output}: holds tars that ingest did not make; choose another output folder")
    storage.write_bytes(path, json.dumps(inputs, indent=1).encode())


@contextlib.contextmanager
def _held(config: IngestConfig, work_folder: WorkFolder) -> Iterator[None]:
    """The dataset for this process alone, cleared of what a killed one left half-written: two would publish each other's shards."""
    with RunDirectory(work_folder.folder).locked():
        if storage.is_local(config.output):
            folder = Path(config.output.removeprefix("file://"))
            with RunDirectory(folder / "outcomes").locked():
                for place in (folder, folder / "outcomes", folder / "index", folder / "manifests"):
                    for leftover in place.glob(".*.tmp"):
                        leftover.unlink()
                yield
        else:
            with _leased(config, work_folder):
                if aborted := storage.abort_uploads(config.output):
                    log.info("ingest: removed %d unfinished uploads of an earlier start", aborted)
                yield


@contextlib.contextmanager
def _leased(config: IngestConfig, work_folder: WorkFolder) -> Iterator[None]:
    """An object store has no locks: a lease in the dataset folder instead."""
    folder = storage.join(config.output, "lease")
    before = lease.highest(folder)
    # This work folder is locked, so the process that wrote this file is dead: if it was the last holder, there is nobody to wait for.
    ours = work_folder.output_generation.exists() and work_folder.output_generation.read_text() == str(before)
    if before is not None and not ours:
        log.info("ingest: %s is or was in use by another process; waiting %.0f s for a sign of life", config.output, config.engine.lease_s)
    with lease.claim(folder, config.engine.lease_s, config.engine.storage_patience_s, holder_is_dead=ours) as held:
        storage.write_bytes(str(work_folder.output_generation), str(held.generation).encode())
        yield
        held.check()
    lease.release(held)


def _published_dataset(output: str, mark: str) -> manifest.Manifest | None:
    if manifest.newest_number(output) is None:
        return None
    found = manifest.read_manifest(output)
    return found if found.config.get("fingerprint") == mark else None


def _pair_table(config: IngestConfig, work_folder: WorkFolder, run_folder: Path) -> RowCounts:
    if work_folder.counts.exists():
        return RowCounts.from_json(json.loads(work_folder.counts.read_bytes()))
    table, rejected = str(work_folder.pair_table), str(work_folder.rejected)
    between = partial(stopping.raise_if_stopping, run_folder)
    counts = pair_table.build(config.sources, config.filters, config.samples_per_shard, table, rejected, work_folder.pair_table_scratch, between)
    storage.write_bytes(str(work_folder.counts), json.dumps(asdict(counts)).encode())
    return counts


def _done_shards(config: IngestConfig, pictures: int) -> dict[str, PublishedShard]:
    """The shards that stand whole in the dataset folder, by name.

    Raises:
        DataError: one covers another number of rows than it should.
    """
    shards = {}
    for name in filter(str.isdigit, published.names(config.output)):  # shards this ingest numbered
        shard = published.read(config.output, name)
        expected = min(config.samples_per_shard, pictures - int(name) * config.samples_per_shard)
        if shard.rows != expected or sum(shard.outcomes.values()) != expected:
            raise DataError(f"{published.outcome_path(config.output, name)}: {shard.rows} rows, expected {expected}; remove it and run again")
        if published.is_whole(config.output, shard):
            shards[name] = shard
        else:
            log.warning("shard %s: its tar or index is missing or has another size; it is fetched again", name)
    return shards


def _publish(config: IngestConfig, mark: str, work_folder: WorkFolder, counts: RowCounts, shards: dict[str, PublishedShard]) -> manifest.Manifest:
    outcomes = sum((Counter(shard.outcomes) for shard in shards.values()), Counter[str]())
    entries = [shard.entry for shard in shards.values() if shard.entry is not None]
    samples = sum(entry.samples for entry in entries)
    if outcomes.total() != counts.pictures or samples != outcomes[Outcome.SUCCESS.value]:
        raise AlbefError(f"{counts.pictures} pictures were listed, {outcomes.total()} have an outcome; {samples} samples for {dict(outcomes)}")
    storage.write_bytes(storage.join(config.output, "rejected.parquet"), work_folder.rejected.read_bytes())
    record = {"fingerprint": mark, "rows": asdict(counts), "ingest": config.model_dump(mode="json")}
    return manifest.publish(config.output, entries, dict(outcomes.most_common()), record)


def _result(dataset: manifest.Manifest, seconds: float) -> Result:
    counts = {"shards": len(dataset.shards), "samples": dataset.num_samples, "captions": dataset.num_captions}
    return {"outcomes": dataset.outcomes, "rows": dataset.config["rows"], **counts, "fingerprint": dataset.fingerprint, "seconds": round(seconds, 1)}


def _check_floor(config: IngestConfig, dataset: manifest.Manifest) -> None:
    outcomes = Counter(dataset.outcomes)
    rate = outcomes[Outcome.SUCCESS.value] / outcomes.total()
    log.info("ingest: %d samples in %d shards, %s", dataset.num_samples, len(dataset.shards), summary(outcomes))
    if rate < config.success_floor:
        raise BelowFloor(f"ingest: {summary(outcomes)}; ingest.success_floor asks for {100 * config.success_floor:g} %; published all the same")
