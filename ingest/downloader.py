"""img2dataset's Downloader with the fetch loop replaced: guarded, bounded, journalled, and with every row's outcome kept.

Importing this imports img2dataset and with it wandb, albumentations and more (two seconds): only the engine's processes do.
"""

import asyncio
import hashlib
import logging
import math
import os
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
from img2dataset.downloader import Downloader, compute_key
from img2dataset.resizer import Resizer

from ingest import lifeline, picture, published
from ingest.config import IngestConfig, StoreConfig
from ingest.fetch import Fetched, Fetcher
from ingest.journal import Journal
from ingest.outcomes import Ended, Outcome
from ingest.progress import ShardProgress
from ingest.work_folder import WorkFolder
from pipeline.core.errors import DataError
from shards import layout
from shards.manifest import ShardEntry
from shards.writer import SampleToWrite, write_shard

log = logging.getLogger(__name__)

COLUMNS = ("uid", "captions", "source", "url")
SHARD_DIGITS = 5
STOP_CHECK_S = 0.2
Row = dict[str, Any]


def shard_name(shard_id: int) -> str:
    return f"{shard_id:0{SHARD_DIGITS}d}"


def make_resizer(store: StoreConfig) -> Any:
    return Resizer(
        image_size=store.image_size,
        resize_mode=store.resize_mode,
        resize_only_if_bigger=not store.upscale,
        encode_quality=store.encode_quality,
        encode_format="jpg",
        skip_reencode=store.skip_reencode,
    )


class GuardedDownloader(Downloader):  # type: ignore[misc]
    """Called by img2dataset's distributor in a worker process, once a shard, with (shard id, file with its rows)."""

    def __init__(self, config: IngestConfig, work_folder: WorkFolder, parent_pid: int) -> None:
        super().__init__(
            sample_writer_class=None,
            resizer=make_resizer(config.store),
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
        self.config, self.work_folder, self.parent_pid = config, work_folder, parent_pid

    def __call__(self, row: tuple[int, str]) -> tuple[bool, tuple[int, str]]:
        """(True, row) when the shard is done or was left because of a stop; a failure is noted for the parent to judge."""
        lifeline.die_with(self.parent_pid)
        if self.work_folder.asked_to_stop():
            return True, row
        name = shard_name(row[0])
        try:
            self.download_shard(row)
        except (DataError, OSError) as error:
            self.work_folder.note_failure(name, "storage", " ".join(str(error).split()))
            return False, row
        except Exception:
            self.work_folder.note_failure(name, "error", traceback.format_exc())
            return False, row
        self.work_folder.forget_failure(name)
        return True, row

    def download_shard(self, row: tuple[int, str]) -> None:
        """Fetch what the journal does not hold yet, then write tar, index and outcome table."""
        name = shard_name(row[0])
        rows = _read_rows(row[1])
        progress = ShardProgress(name, os.getpid())
        with progress.reported(self.work_folder.progress), Journal(self.work_folder.journal(name)) as journal:
            progress.outcomes.update(facts["outcome"] for facts in journal.facts.values())
            finished = asyncio.run(_ShardFetch(self.config, self.resizer, self.work_folder, rows, journal, progress).run())
            if not finished:
                return
            self._publish(name, row[0], rows, journal)
            journal.discard()
        Path(row[1]).unlink(missing_ok=True)

    def _publish(self, name: str, shard_id: int, rows: list[Row], journal: Journal) -> None:
        digits = math.ceil(math.log10(max(self.number_sample_per_shard, 2)))
        table = [{"key": compute_key(index, shard_id, digits, SHARD_DIGITS), **row, **journal.facts[index]} for index, row in enumerate(rows)]
        entry: ShardEntry | None = None
        if any(row["outcome"] == Outcome.SUCCESS for row in table):
            source = "+".join(sorted({row["source"] for row in table}))
            entry = write_shard(layout.tar_path(self.config.output, name), _samples(table, journal), source)
        published.write(self.config.output, name, table, entry)


def _read_rows(path: str) -> list[Row]:
    with pa.memory_map(path) as file:
        rows: list[Row] = pa.ipc.open_file(file).read_all().select(list(COLUMNS)).to_pylist()
    return rows


def _samples(table: list[Row], journal: Journal) -> Iterator[SampleToWrite]:
    """The successes in the order of the pair table, their pictures read from the journal one by one."""
    kept = ("key", "uid", "url", "source", "sha256", "width", "height", "original_width", "original_height")
    for index, row in enumerate(table):
        if row["outcome"] == Outcome.SUCCESS:
            yield SampleToWrite(row["key"], journal.picture(index), "jpg", tuple(row["captions"]), {name: row[name] for name in kept})


class _ShardFetch:
    """One shard's rows through fetch, check and resize into the journal; `concurrency` rows are in flight, one thread turns bodies into pictures."""

    def __init__(self, config: IngestConfig, resizer: Any, work_folder: WorkFolder, rows: list[Row], journal: Journal, progress: ShardProgress) -> None:
        self.config, self.resizer, self.work_folder = config, resizer, work_folder
        self.rows, self.journal, self.progress = rows, journal, progress
        self.missing = iter([index for index in range(len(rows)) if index not in journal.facts])

    async def run(self) -> bool:
        """Whether all rows are in the journal now; False when asked to stop before."""
        with ThreadPoolExecutor(1, thread_name_prefix="picture") as pictures:  # one: the Resizer redirects file descriptors of the whole process
            async with Fetcher(self.config.fetch) as fetcher:
                lanes = [asyncio.create_task(self._lane(fetcher, pictures)) for _ in range(self.config.engine.concurrency)]
                try:
                    await self._until_done_or_stopped(lanes)
                finally:
                    for lane in lanes:
                        lane.cancel()
                    await asyncio.gather(*lanes, return_exceptions=True)
        return len(self.journal.facts) == len(self.rows)

    async def _until_done_or_stopped(self, lanes: list[asyncio.Task[None]]) -> None:
        waiting = set(lanes)
        while waiting and not self.work_folder.asked_to_stop():
            done, waiting = await asyncio.wait(waiting, timeout=STOP_CHECK_S, return_when=asyncio.FIRST_EXCEPTION)
            for lane in done:
                lane.result()  # raises what the lane raised: a full disk

    async def _lane(self, fetcher: Fetcher, pictures: ThreadPoolExecutor) -> None:
        loop = asyncio.get_running_loop()
        for index in self.missing:
            fetched = await fetcher.fetch(self.rows[index]["url"])
            facts, jpeg = await loop.run_in_executor(pictures, self._finish, fetched) if fetched.body else self._finish(fetched)
            self.journal.append(index, facts, jpeg)
            self.progress.outcomes[facts["outcome"]] += 1

    def _finish(self, fetched: Fetched) -> tuple[dict[str, Any], bytes]:
        """The row's facts and, on success, its picture."""
        facts: dict[str, Any] = {"outcome": fetched.outcome.value, "http_status": fetched.status, "bytes": len(fetched.body), "attempts": 1}
        facts |= {"latency_s": round(fetched.latency_s, 4), "detail": fetched.detail}
        if fetched.outcome is not Outcome.SUCCESS:
            return facts, b""
        facts["sha256"] = hashlib.sha256(fetched.body).hexdigest()
        try:
            prepared = picture.prepare(fetched.body, self.resizer, self.config.store.min_size, self.config.store.max_pixels)
        except Ended as end:
            return facts | {"outcome": end.outcome.value, "detail": end.detail}, b""
        except Exception as error:
            log.exception("unexpected while reading a picture")
            return facts | {"outcome": Outcome.UNEXPECTED_ERROR.value, "detail": f"{type(error).__name__}: {error}"[:200]}, b""
        sizes = {name: getattr(prepared, name) for name in ("width", "height", "original_width", "original_height")}
        return facts | sizes, prepared.jpeg
