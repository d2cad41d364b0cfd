"""How hosts are treated: few connections each, spaced requests, their pauses obeyed, and the rows of a crowded host never in the way of others."""

import asyncio
import contextlib
import random
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Iterable, Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

from ingest.outcomes import Ended, Outcome


class Budget:
    """What one URL may use: its wall time and its attempts; the clock stands still while it waits for its turn at a host, which is our doing.

    To be made inside a task; `timer` is entered around all of the URL's work.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.attempts = 0
        self.holds_large_body = False
        self._loop = asyncio.get_running_loop()
        self.timer = asyncio.timeout(seconds)

    @property
    def left_s(self) -> float:
        when = self.timer.when()
        return self.seconds if when is None else when - self._loop.time()

    @property
    def spent_s(self) -> float:
        return self.seconds - self.left_s

    @contextlib.contextmanager
    def standing_still(self) -> Iterator[None]:
        left = self.left_s
        self.timer.reschedule(None)
        try:
            yield
        finally:
            self.timer.reschedule(self._loop.time() + left)


class Host:
    """One host as this process meets it."""

    def __init__(self, connections: int, requests_per_second: float | None) -> None:
        self.interval_s = 0.0 if requests_per_second is None else 1 / requests_per_second
        self._slots = asyncio.Semaphore(connections)
        self._next_at = 0.0
        self._pause: tuple[float, Outcome, int] = (0.0, Outcome.HTTP_429, 429)

    @contextlib.asynccontextmanager
    async def turn(self, budget: Budget) -> AsyncIterator[None]:
        """A connection's worth of this host; the request comes first inside.

        Raises:
            Ended: the host asked for a pause that is longer than what the budget leaves.
        """
        if self._slots.locked():
            with budget.standing_still():
                await self._slots.acquire()
        else:
            await self._slots.acquire()
        try:
            await self._pause_over(budget)
            if self.interval_s:
                with budget.standing_still():
                    await asyncio.sleep(self._reserved_in_s())
                await self._pause_over(budget)
            yield
        finally:
            self._slots.release()

    def slow_down(self, interval_s: float) -> None:
        """At least `interval_s` seconds from now on between requests."""
        self.interval_s = max(self.interval_s, interval_s)

    def pause(self, seconds: float, outcome: Outcome, status: int) -> None:
        """Nobody asks this host for `seconds` seconds; the rest is the answer that asked for it."""
        until = time.monotonic() + seconds
        if until > self._pause[0]:
            self._pause = (until, outcome, status)

    async def _pause_over(self, budget: Budget) -> None:
        while (wait := self._pause[0] - time.monotonic()) > 0:
            if wait >= budget.left_s:
                _, outcome, status = self._pause
                raise Ended(outcome, f"not asked: the host wants a pause of {wait:.0f} s more", status)
            await asyncio.sleep(wait)

    def _reserved_in_s(self) -> float:
        """A token bucket that holds one token: seconds until the next one that nobody has reserved."""
        now = time.monotonic()
        turn_at = max(self._next_at, now)
        self._next_at = turn_at + self.interval_s
        return turn_at - now


def backoff_s(first_s: float, attempts: int) -> float:
    """Seconds to wait after so many attempts: doubled each time, and by chance up to half more or less, lest all that failed together come back together."""
    return first_s * 2.0 ** (attempts - 1) * random.uniform(0.5, 1.5)


def retry_after_s(value: str | None, now: datetime | None = None) -> float | None:
    """Seconds that a Retry-After header asks for, given as a number or an HTTP date; None when there is none to be understood."""
    if not value:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(0.0, (date - (now or datetime.now(UTC))).total_seconds())


class HostRotation:
    """Hands out rows so that the lanes of an engine never queue before one host: host by host in turn, and at most `lanes_per_host` of each at a time.

    Without it a list with half its rows at one slow host fills all lanes with those, and the other hosts wait.
    """

    def __init__(self, rows: Iterable[tuple[int, str]], lanes_per_host: int) -> None:
        self._rows: dict[str, deque[int]] = defaultdict(deque)
        for index, url in rows:
            self._rows[host_of(url)].append(index)
        self._lanes_per_host = lanes_per_host
        self._ready = deque(self._rows)  # hosts with rows left and lanes to spare
        self._lanes: dict[str, int] = defaultdict(int)
        self._left = sum(map(len, self._rows.values()))
        self._changed = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def row(self) -> AsyncIterator[int | None]:
        """The next row to fetch, which counts as its host's until the block is left; None when all were handed out."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._ready or not self._left)
            if not self._left:
                host, index = "", None
            else:
                host = self._ready.popleft()
                index = self._rows[host].popleft()
                self._left -= 1
                self._lanes[host] += 1
                self._ready_again(host)
                if not self._left:
                    self._changed.notify_all()
        try:
            yield index
        finally:
            if index is not None:
                await self._returned(host)

    async def _returned(self, host: str) -> None:
        async with self._changed:
            was_full = self._lanes[host] == self._lanes_per_host
            self._lanes[host] -= 1
            if was_full:
                self._ready_again(host)
                self._changed.notify()

    def _ready_again(self, host: str) -> None:
        if self._rows[host] and self._lanes[host] < self._lanes_per_host:
            self._ready.append(host)


def host_of(url: str) -> str:
    """Empty when the URL is none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:  # fetching it will say what is wrong
        return ""
