"""One process at a time works on a dataset: a lock beside it on disk, a lease in it on an object store."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

from ingest import lease
from ingest.config import EngineConfig
from ingest.work_folder import WorkFolder
from pipeline.core import storage
from pipeline.core.run_directory import RunDirectory

log = logging.getLogger(__name__)

StillHeld = Callable[[], None]  # raises LeaseLost when another process has the dataset now; to be called before anything that readers see


@contextlib.contextmanager
def ingest_held(output: str, engine: EngineConfig, work_folder: WorkFolder) -> Iterator[StillHeld]:
    """The dataset and the work folder for this process alone."""
    with RunDirectory(work_folder.folder).locked(), dataset_held(output, engine, work_folder.output_generation) as still_held:
        yield still_held


@contextlib.contextmanager
def dataset_held(output: str, engine: EngineConfig, own_generation: Path | None = None) -> Iterator[StillHeld]:
    """The dataset for this process alone, cleared of what a killed one left half-written: two would publish each other's shards.

    `own_generation` is a file in a folder that this process has locked; it tells the lease of a dead process that worked there from a stranger's.
    """
    if storage.is_local(output):
        folder = Path(output.removeprefix("file://"))
        storage.make_folder(storage.join(output, "outcomes"))  # a place that cannot be written is named
        with RunDirectory(folder / "outcomes").locked():
            for place in (folder, folder / "outcomes", folder / "index", folder / "manifests", folder / "purges"):
                for leftover in place.glob(".*.tmp"):
                    leftover.unlink()
            yield lambda: None  # the kernel keeps the lock as long as the process lives
    else:
        with _leased(output, engine, own_generation) as still_held:
            if aborted := storage.abort_uploads(output):
                log.info("ingest: removed %d unfinished uploads of an earlier start", aborted)
            yield still_held


@contextlib.contextmanager
def _leased(output: str, engine: EngineConfig, own_generation: Path | None) -> Iterator[StillHeld]:
    """An object store has no locks: a lease in the dataset folder instead."""
    folder = storage.join(output, "lease")
    before = lease.highest(folder)
    # That folder is locked, so the process that wrote this file is dead: if it was the last holder, there is nobody to wait for.
    ours = own_generation is not None and own_generation.exists() and own_generation.read_text() == str(before)
    if before is not None and not ours:
        log.info("ingest: %s is or was in use by another process; waiting %.0f s for a sign of life", output, engine.lease_s)
    with lease.claim(folder, engine.lease_s, engine.storage_patience_s, holder_is_dead=ours) as held:
        if own_generation is not None:
            storage.write_bytes(str(own_generation), str(held.generation).encode())
        yield held.check
        held.check()
    lease.release(held)
