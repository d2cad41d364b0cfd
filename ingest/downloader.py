"""img2dataset's Downloader with the fetch loop replaced: guarded, bounded, journalled, and with every row's outcome kept."""

import asyncio
import contextlib
import json
import logging
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

import pyarrow as pa

from ingest import journal, lease, published
from ingest.config import IngestConfig
from ingest.journal import Journal
from ingest.lease import Lease, LeaseLost
from ingest.outcomes import Outcome
from ingest.pair_table import COLUMNS
from ingest.progress import ShardProgress
from ingest.shard_fetch import Row, ShardFetch
from ingest.spool import Spool
from pipeline.core import lifeline, storage
from pipeline.core.errors import DataError
from shards import layout
from shards.manifest import ShardEntry
from shards.writer import SampleToWrite, write_shard


@contextlib.contextmanager
def _without_torch() -> Iterator[None]:
    """Let webdataset, which img2dataset imports, take its path without torch: 2 s of CPU and 200 MB less in each worker."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it phones home at each import otherwise
    torch = sys.modules.get("torch")
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["torch"]
        if torch is not None:
            sys.modules["torch"] = torch


with _without_torch():  # the wandb, albumentations and pandas this drags in take two seconds: only the engine's processes import this module
    from img2dataset.downloader import Downloader, compute_key

log = logging.getLogger(__name__)

SHARD_DIGITS = 5
KNOWN_OF_A_SAMPLE = ("key", "uid", "url", "source", "sha256", "phash", "width", "height", "original_width", "original_height")
T = TypeVar("T")


class ShardFailed(Exception):
    """A shard could not be done; the text is JSON on one line, which survives what Spark and Ray wrap around it."""

    def __init__(self, text: str) -> None:  # one argument, as pickling an exception asks for
        super().__init__(text)

    @classmethod
    def of(cls, shard: str, kind: str, text: str) -> "ShardFailed":
        """`kind` is "storage" (run again when it is back) or "error" (a bug; `text` is the traceback)."""
        return cls(json.dumps({"shard": shard, "kind": kind, "text": text}))


def shard_name(shard_id: int) -> str:
    return f"{shard_id:0{SHARD_DIGITS}d}"


class GuardedDownloader(Downloader):  # type: ignore[misc]
    """Called by img2dataset's distributor in a worker process, once a shard, with (shard id, file with its rows).

    `parent_pid` is the process whose children the workers are, where one has them; they end with it. `holders_are_dead` says that
    whoever held a lease before this start is known to be dead, so that nobody is waited for.
    """

    def __init__(self, config: IngestConfig, spool: Spool, parent_pid: int | None, holders_are_dead: bool) -> None:
        super().__init__(
            sample_writer_class=None,
            resizer=None,  # ingest.picture takes its place, with the same settings
            thread_count=config.engine.concurrency,
            save_caption=True,
            extract_exif=False,
            output_folder=config.output,
            column_list=list(COLUMNS),
            timeout=config.fetch.timeout_s,
            number_sample_per_shard=config.samples_per_shard,
            oom_shard_count=SHARD_DIGITS,
            compute_hash="sha256",
            verify_hash_type=None,
            encode_format="jpg",
            retries=0,
            user_agent_token=None,
            disallowed_header_directives=config.fetch.opt_out_directives,
        )
        self.config, self.spool, self.parent_pid, self.holders_are_dead = config, spool, parent_pid, holders_are_dead

    def __call__(self, row: tuple[int, str]) -> tuple[bool, tuple[int, str]]:
        """(True, row) when the shard is done, was left because of a stop, or is somebody else's now.

        Raises:
            ShardFailed: the storage failed, or there is a bug.
        """
        if self.parent_pid is not None:
            lifeline.die_with(self.parent_pid)
        if self.spool.asked_to_stop():
            return True, row
        name = shard_name(row[0])
        try:
            self.download_shard(row)
        except LeaseLost as lost:
            log.warning("shard %s: %s", name, lost)
        except (DataError, OSError) as error:
            raise ShardFailed.of(name, "storage", " ".join(str(error).split())) from error
        except Exception as error:
            raise ShardFailed.of(name, "error", traceback.format_exc()) from error
        return True, row

    def download_shard(self, row: tuple[int, str]) -> None:
        """Fetch what no journal of the shard holds yet, then write tar, index and outcome table.

        Raises:
            LeaseLost: another worker has the shard now.
        """
        name = shard_name(row[0])
        progress = ShardProgress(name, os.getpid())
        with progress.reported(self.spool.progress):
            engine = self.config.engine
            held = lease.claim(self.spool.lease(name), engine.lease_s, engine.storage_patience_s, self.holders_are_dead)
            with held:
                if not self._patiently(partial(published.is_done, self.config.output, name)):
                    self._fetch_and_publish(name, row, held, progress)
                held.check()
            lease.release(held)

    def _fetch_and_publish(self, name: str, row: tuple[int, str], held: Lease, progress: ShardProgress) -> None:
        rows = self._patiently(lambda: _read_rows(row[1]))
        with journal.open_journal(self.spool.journal(name), held.generation, self.config.engine.storage_patience_s) as kept:
            fetch = ShardFetch(self.config, self.spool, rows, kept, held, progress)
            progress.outcomes.update(facts["outcome"] for facts in kept.facts.values())
            progress.resumed = len(kept.facts)
            finished = asyncio.run(fetch.run())
            if not finished:
                return
            self._publish(name, row[0], rows, kept, held)
            self._patiently(kept.discard)
        self._patiently(lambda: storage.remove(row[1]))

    def _publish(self, name: str, shard_id: int, rows: list[Row], kept: Journal, held: Lease) -> None:
        digits = math.ceil(math.log10(max(self.number_sample_per_shard, 2)))
        table = [{"key": compute_key(index, shard_id, digits, SHARD_DIGITS), **row, **kept.facts[index]} for index, row in enumerate(rows)]
        held.check()
        entry: ShardEntry | None = None
        if any(row["outcome"] == Outcome.SUCCESS for row in table):
            source = "+".join(sorted({row["source"] for row in table}))
            path = layout.tar_path(self.config.output, name)
            entry = self._patiently(lambda: write_shard(path, _samples(table, kept, held), source))
        held.check()
        self._patiently(lambda: published.write(self.config.output, name, table, entry))

    def _patiently(self, operation: Callable[[], T]) -> T:
        return storage.patiently(operation, self.config.engine.storage_patience_s)


def _read_rows(path: str) -> list[Row]:
    with pa.BufferReader(storage.read_bytes(path)) as file:
        rows: list[Row] = pa.ipc.open_file(file).read_all().select(list(COLUMNS)).to_pylist()
    return rows


def _samples(table: list[Row], kept: Journal, held: Lease) -> Iterator[SampleToWrite]:
    """The successes in the order of the pair table, their pictures read from the journal one by one.

    Raises LeaseLost after the last, just before the tar would take its name.
    """
    for index, row in enumerate(table):
        if row["outcome"] == Outcome.SUCCESS:
            known = json.loads(row["extra"] or "{}") | {name: row[name] for name in KNOWN_OF_A_SAMPLE}  # a list does not overrule what ingest found
            yield SampleToWrite(row["key"], kept.picture(index), "jpg", tuple(row["captions"]), known)
    held.check()
