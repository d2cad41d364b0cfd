"""img2dataset's Downloader with the fetch loop replaced: guarded, bounded, journalled, and with every row's outcome kept."""

import asyncio
import contextlib
import hashlib
import json
import logging
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import pyarrow as pa

from ingest import journal, lease, lifeline, published
from ingest.config import IngestConfig
from ingest.fetch import Fetched, Fetcher
from ingest.journal import Journal
from ingest.lease import Lease, LeaseLost
from ingest.outcomes import Ended, Outcome
from ingest.pair_table import COLUMNS
from ingest.picture import Preparer
from ingest.progress import ShardProgress
from ingest.spool import Spool
from pipeline.core import storage
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
Row = dict[str, Any]
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
            resizer=None,
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
            progress.outcomes.update(facts["outcome"] for facts in kept.facts.values())
            finished = asyncio.run(_ShardFetch(self.config, self.spool, rows, kept, held, progress).run())
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
    wanted = ("key", "uid", "url", "source", "sha256", "width", "height", "original_width", "original_height")
    for index, row in enumerate(table):
        if row["outcome"] == Outcome.SUCCESS:
            known = json.loads(row["extra"] or "{}") | {name: row[name] for name in wanted}  # what ingest says of a picture is not overruled by a list
            yield SampleToWrite(row["key"], kept.picture(index), "jpg", tuple(row["captions"]), known)
    held.check()


class _ShardFetch:
    """One shard's rows through fetch, check and resize into the journal; `concurrency` rows are in flight, one thread turns bodies into pictures."""

    def __init__(self, config: IngestConfig, spool: Spool, rows: list[Row], kept: Journal, held: Lease, progress: ShardProgress) -> None:
        self.config, self.spool, self.lease = config, spool, held
        self.prepare = Preparer(config.store)
        self.rows, self.journal, self.progress = rows, kept, progress
        self.missing = iter([index for index in range(len(rows)) if index not in kept.facts])
        self.journal_lock = asyncio.Lock()

    async def run(self) -> bool:
        """Whether all rows are in the journal now; False when asked to stop before. Either way what was finished is safe."""
        with ThreadPoolExecutor(1, thread_name_prefix="picture") as pictures:
            async with Fetcher(self.config.fetch) as fetcher:
                lanes = [asyncio.create_task(self._lane(fetcher, pictures)) for _ in range(self.config.engine.concurrency)]
                try:
                    await self._until_done_or_stopped(lanes)
                finally:
                    for lane in lanes:
                        lane.cancel()
                    await asyncio.gather(*lanes, return_exceptions=True)
        done = len(self.journal.facts) == len(self.rows)
        if not done:
            self.journal.save()
        return done

    async def _until_done_or_stopped(self, lanes: list[asyncio.Task[None]]) -> None:
        waiting = set(lanes)
        while waiting and not await asyncio.to_thread(self.spool.asked_to_stop):
            done, waiting = await asyncio.wait(waiting, timeout=self.spool.look_every_s, return_when=asyncio.FIRST_EXCEPTION)
            if self.lease.lost:
                self.lease.check()
            for lane in done:
                lane.result()  # raises what the lane raised: a full disk

    async def _lane(self, fetcher: Fetcher, pictures: ThreadPoolExecutor) -> None:
        loop = asyncio.get_running_loop()
        for index in self.missing:
            fetched = await fetcher.fetch(self.rows[index]["url"])
            facts, jpeg = await loop.run_in_executor(pictures, self._finish, fetched) if fetched.body else self._finish(fetched)
            await self._keep(index, facts, jpeg)

    async def _keep(self, index: int, facts: dict[str, Any], jpeg: bytes) -> None:
        async with self.journal_lock:  # so that no more than ROWS_PER_OBJECT finished rows are ever unsafe
            self.journal.append(index, facts, jpeg)
            if self.journal.unsaved_rows >= journal.ROWS_PER_OBJECT:
                await asyncio.to_thread(self.journal.save)
        self.progress.outcomes[facts["outcome"]] += 1
        self.progress.bytes += facts["bytes"]

    def _finish(self, fetched: Fetched) -> tuple[dict[str, Any], bytes]:
        """The row's facts and, on success, its picture."""
        facts: dict[str, Any] = {"outcome": fetched.outcome.value, "http_status": fetched.status, "bytes": len(fetched.body), "attempts": 1}
        facts |= {"latency_s": round(fetched.latency_s, 4), "detail": fetched.detail}
        if fetched.outcome is not Outcome.SUCCESS:
            return facts, b""
        facts["sha256"] = hashlib.sha256(fetched.body).hexdigest()
        try:
            prepared = self.prepare(fetched.body)
        except Ended as end:
            return facts | {"outcome": end.outcome.value, "detail": end.detail}, b""
        except Exception as error:
            log.exception("unexpected while reading a picture")
            return facts | {"outcome": Outcome.UNEXPECTED_ERROR.value, "detail": f"{type(error).__name__}: {error}"[:200]}, b""
        sizes = {name: getattr(prepared, name) for name in ("width", "height", "original_width", "original_height")}
        return facts | sizes, prepared.jpeg
