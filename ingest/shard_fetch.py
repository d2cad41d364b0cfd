"""One shard's rows on their way: from the web or an archive, through the checks and the resizing, into the journal."""

import asyncio
import hashlib
import json
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from ingest import journal, screening
from ingest.archives import read_member
from ingest.config import IngestConfig
from ingest.fetch import Fetched, Fetcher
from ingest.journal import Journal
from ingest.lease import Lease
from ingest.outage import OutageWatch
from ingest.outcomes import DETAIL_LIMIT, Ended, Outcome
from ingest.pair import Member
from ingest.pair_table import member_of
from ingest.picture import Preparer
from ingest.politeness import HostRotation, host_of
from ingest.progress import ShardProgress
from ingest.spool import Spool
from pipeline.core import storage

log = logging.getLogger(__name__)

Row = dict[str, Any]  # of the pair table
Facts = dict[str, Any]  # what became of it
PREPARED = ("width", "height", "original_width", "original_height", "phash")


class ShardFetch:
    """`concurrency` rows are in flight; one thread turns bodies into pictures."""

    def __init__(self, config: IngestConfig, spool: Spool, rows: list[Row], kept: Journal, held: Lease, progress: ShardProgress) -> None:
        self.config, self.spool, self.lease = config, spool, held
        self.rows, self.journal, self.progress = rows, kept, progress
        self.preparers = {source.label: Preparer(source.store or config.store) for source in config.sources}
        missing = [index for index in range(len(rows)) if index not in kept.facts]
        self.rotation = HostRotation([(index, _place(index, rows[index])) for index in missing], config.fetch.connections_per_host)
        self.journal_lock = asyncio.Lock()
        self.screen = screening.read_once(config)
        self._screen_kept()
        self.outage = OutageWatch(config.fetch.outage_rows, len({host_of(row["url"]) for row in rows if row["archive"] is None}))

    def _screen_kept(self) -> None:
        """What an earlier holder of the lease fetched may be on a block list that has grown since."""
        for index, facts in list(self.journal.facts.items()):
            if facts["outcome"] == Outcome.SUCCESS:
                try:
                    self.screen.check_row(self.rows[index])
                    self.screen.check_bytes(facts["sha256"])
                    self.screen.check_looks(facts["phash"])
                except Ended as end:
                    known = {name: value for name, value in facts.items() if name not in PREPARED}
                    self.journal.facts[index] = known | {"outcome": end.outcome.value, "detail": end.detail}

    async def run(self) -> bool:
        """Whether all rows are in the journal now; False when asked to stop before. However it ends, what was finished is safe."""
        with ThreadPoolExecutor(1, thread_name_prefix="picture") as pictures:
            async with Fetcher(self.config.fetch) as fetcher:
                lanes = [asyncio.create_task(self._lane(fetcher, pictures)) for _ in range(self.config.engine.concurrency)]
                try:
                    await self._until_done_or_stopped(lanes)
                finally:
                    for lane in lanes:
                        lane.cancel()
                    await asyncio.gather(*lanes, return_exceptions=True)
                    if len(self.journal.facts) < len(self.rows):
                        self.journal.save()
        done = len(self.journal.facts) + len(self.outage.held) == len(self.rows)
        if done:
            for ended in self.outage.release():
                await self._keep(*ended)
        return done

    async def _until_done_or_stopped(self, lanes: list[asyncio.Task[None]]) -> None:
        waiting = set(lanes)
        while waiting and not await asyncio.to_thread(self.spool.asked_to_stop):
            done, waiting = await asyncio.wait(waiting, timeout=self.spool.look_every_s, return_when=asyncio.FIRST_EXCEPTION)
            if self.lease.lost:
                self.lease.check()
            for lane in done:
                lane.result()  # raises what the lane raised: a full disk, an archive that is gone

    async def _lane(self, fetcher: Fetcher, pictures: ThreadPoolExecutor) -> None:
        while True:
            async with self.rotation.row() as index:
                if index is None:
                    return
                row = self.rows[index]
                if (refused := self._refused(row)) is not None:
                    facts, jpeg = self._finish(row, refused)
                elif (member := member_of(row)) is not None:
                    facts, jpeg = await self._finished(pictures, row, await asyncio.to_thread(self._from_archive, member))
                else:
                    async with fetcher.fetching(row["url"]) as fetched:
                        facts, jpeg = await self._finished(pictures, row, fetched)
            if row["archive"] is not None:
                await self._keep(index, facts, jpeg)
            else:
                for ended in self.outage.pass_on(host_of(row["url"]), (index, facts, jpeg)):
                    await self._keep(*ended)

    def _refused(self, row: Row) -> Fetched | None:
        """How a row ends that is not asked for at all."""
        try:
            self.screen.check_row(row)
        except Ended as end:
            return Fetched(end.outcome, b"", None, 0.0, end.detail, attempts=0)
        return None

    async def _finished(self, pictures: ThreadPoolExecutor, row: Row, fetched: Fetched) -> tuple[Facts, bytes]:
        if not fetched.body:
            return self._finish(row, fetched)
        return await asyncio.get_running_loop().run_in_executor(pictures, self._finish, row, fetched)

    def _from_archive(self, member: Member) -> Fetched:
        started = time.monotonic()
        try:
            body = storage.patiently(partial(read_member, member, self.config.fetch.max_bytes), self.config.engine.storage_patience_s)
        except Ended as end:
            return Fetched(end.outcome, b"", None, time.monotonic() - started, end.detail, attempts=1)
        return Fetched(Outcome.SUCCESS, body, None, time.monotonic() - started, "", attempts=1)

    async def _keep(self, index: int, facts: Facts, jpeg: bytes) -> None:
        async with self.journal_lock:  # so that no more than ROWS_PER_OBJECT finished rows are ever unsafe
            self.journal.append(index, facts, jpeg)
            if self.journal.unsaved_rows >= journal.ROWS_PER_OBJECT:
                await asyncio.to_thread(self.journal.save)
        self.progress.outcomes[facts["outcome"]] += 1
        self.progress.bytes += facts["bytes"]

    def _finish(self, row: Row, fetched: Fetched) -> tuple[Facts, bytes]:
        """The row's facts and, on success, its picture."""
        facts: Facts = {"outcome": fetched.outcome.value, "http_status": fetched.status, "bytes": len(fetched.body), "attempts": fetched.attempts}
        facts |= {"latency_s": round(fetched.latency_s, 4), "detail": fetched.detail}
        if fetched.outcome is not Outcome.SUCCESS:
            return facts, b""
        extra = json.loads(row["extra"]) if row["extra"] else {}
        facts["sha256"] = hashlib.sha256(fetched.body).hexdigest()
        if published := extra.get("published_sha256"):
            facts["published_hash"] = "match" if published == facts["sha256"] else "changed"
        prepare = self.preparers[row["source"]]
        try:
            self.screen.check_bytes(facts["sha256"])
            prepared = prepare(fetched.body, extra.get(prepare.store.blur_column) if prepare.store.blur_column else None)
            self.screen.check_looks(prepared.phash)
        except Ended as end:
            return facts | {"outcome": end.outcome.value, "detail": end.detail}, b""
        except Exception as error:
            log.exception("unexpected while reading a picture")
            return facts | {"outcome": Outcome.UNEXPECTED_ERROR.value, "detail": f"{type(error).__name__}: {error}"[:DETAIL_LIMIT]}, b""
        return facts | {name: getattr(prepared, name) for name in PREPARED}, prepared.jpeg


def _place(index: int, row: Row) -> str:
    """Whose turn a row takes: its host's, or, of an archive, none but its own."""
    return f"member://{index}" if row["archive"] is not None else row["url"]
