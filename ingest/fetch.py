"""Fetch one URL within hard bounds: public addresses, wall-clock deadline, byte cap, redirect cap, whole bodies only."""

import asyncio
import contextlib
import errno
import functools
import logging
import socket
import ssl
import time
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import TracebackType
from typing import cast

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from ingest import robots
from ingest.config import FetchConfig
from ingest.guard import BlockedAddress, GuardedResolver, GuardedSocket, check_url
from ingest.opt_out import opted_out, reserved
from ingest.outcomes import DETAIL_LIMIT, Ended, Outcome, of_status
from ingest.politeness import Budget, Host, backoff_s, retry_after_s
from ingest.response_handler import SteadyResponseHandler
from ingest.urls import parse
from pipeline.core.errors import ConfigError

log = logging.getLogger(__name__)

REDIRECTS = (301, 302, 303, 307, 308)
PASSING_STATUSES = (429, 500, 502, 503, 504)
DNS_CACHE_S = 300
KEEP_ALIVE_S = 5.0  # idle connections to thousands of hosts add up: at 100 new hosts a second these are 500 open files
LARGE_BYTES = 2 * 2**20  # a body beyond this takes one of
LARGE_BODIES = 4  # places: with 32 lanes at most 28 x 2 + 4 x 20 MiB of bodies, where 32 x 20 would leave a worker of 1 GB nothing to decode in
GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS

robots_memory = robots.Memory()  # one for the process, which fetches shard after shard


@dataclass(frozen=True)
class Fetched:
    """How fetching one URL ended; SUCCESS means that `body` is whole, not that it is a picture. With 0 attempts nothing was asked."""

    outcome: Outcome
    body: bytes
    status: int | None
    latency_s: float
    detail: str
    attempts: int


class MayPass(Ended):
    """An end that the next attempt may not meet; `retry_after_s` is what the server asks to wait at least."""

    def __init__(self, outcome: Outcome, detail: str = "", status: int | None = None, retry_after_s: float = 0.0) -> None:
        super().__init__(outcome, detail, status)
        self.retry_after_s = retry_after_s


class Fetcher:
    """One session for a shard: connections are kept alive, the TLS context is made once, a name is resolved once."""

    def __init__(self, config: FetchConfig) -> None:
        self.config = config
        self._product = config.user_agent.partition("/")[0].strip().lower()
        self._ports = () if config.allow_loopback else tuple(config.ports)
        self._hosts: dict[str, Host] = {}
        self._asking_robots: dict[str, asyncio.Task[robots.Rules]] = {}
        self._checked_names: dict[str, float] = {}

    async def __aenter__(self) -> "Fetcher":
        config = self.config
        self._resolver = GuardedResolver(config.allow_loopback)
        self._large_bodies = asyncio.Semaphore(LARGE_BODIES)
        direct = config.proxy is None  # else the only connections are to the proxy, which may well have an inside address
        connector = aiohttp.TCPConnector(
            limit=0,
            ssl=tls_context(config.ca_file),
            resolver=self._resolver if direct else None,
            socket_factory=GuardedSocket(config.allow_loopback) if direct else None,
            ttl_dns_cache=DNS_CACHE_S,
            keepalive_timeout=KEEP_ALIVE_S,
        )
        connector._factory = cast(functools.partial[ResponseHandler], functools.partial(SteadyResponseHandler, asyncio.get_running_loop()))
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,  # _decoded does it, within the byte cap
            # The budget bounds everything; half of it for a connection leaves time for a second attempt.
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=config.timeout_s / 2),
            headers={"User-Agent": _user_agent(config), "Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity"},
            proxy=config.proxy,
        )
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for task in self._asking_robots.values():
            task.cancel()
        await asyncio.gather(*self._asking_robots.values(), return_exceptions=True)
        await self._session.close()
        await self._resolver.close()

    async def fetch(self, url: str) -> Fetched:
        """As `fetching`, for a caller who keeps few bodies."""
        async with self.fetching(url) as fetched:
            return fetched

    @contextlib.asynccontextmanager
    async def fetching(self, url: str) -> AsyncIterator[Fetched]:
        """How it ended; the block is left when its body is no longer held, so that only LARGE_BODIES large ones are in memory at a time.

        Never raises for what a URL or a server does; waiting for a turn at the host, or for memory, is not part of the deadline.

        Raises:
            OSError: this machine has no file descriptors left.
        """
        budget = Budget(self.config.timeout_s)
        try:
            yield await self._fetched(url, budget)
        finally:
            self._give_memory_back(budget)

    async def _fetched(self, url: str, budget: Budget) -> Fetched:
        try:
            parsed = parse(url)
        except (ValueError, TypeError) as error:
            return Fetched(Outcome.BAD_URL, b"", None, 0.0, str(error)[:DETAIL_LIMIT], 0)
        try:
            body = await self._within(budget, parsed, picture=True)
        except Ended as end:
            return Fetched(end.outcome, b"", end.status, budget.spent_s, end.detail, budget.attempts)
        return Fetched(Outcome.SUCCESS, body, 200, budget.spent_s, "", budget.attempts)

    async def _within(self, budget: Budget, url: URL, picture: bool) -> bytes:
        """The body, by as many attempts as the settings and the budget allow; `picture` is False for a robots.txt."""
        try:
            async with budget.timer:
                while True:
                    try:
                        return await self._attempt(url, budget, picture)
                    except MayPass as end:
                        self._give_memory_back(budget)  # who waits for another turn at the host must not keep others from finishing theirs
                        wait = max(end.retry_after_s, backoff_s(self.config.backoff_s, budget.attempts))
                        if budget.attempts >= self.config.attempts or wait >= budget.left_s:
                            raise
                    await asyncio.sleep(wait)
        except TimeoutError:
            raise Ended(Outcome.TIMEOUT, f"not done after {self.config.timeout_s:g} s") from None

    async def _attempt(self, url: URL, budget: Budget, picture: bool) -> bytes:
        try:
            return await self._follow(url, budget, picture)
        except Ended:
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
                raise  # no row's fault
            raise _ended(error, url) from error

    async def _follow(self, url: URL, budget: Budget, picture: bool) -> bytes:
        for hop in range(self.config.max_redirects + 1):
            check_url(url, self.config.allow_loopback, self._ports)
            host = self._host(url.raw_host or "")
            if picture and self.config.robots_txt:
                await self._obey_robots(url, host, budget)
            async with host.turn(budget):
                budget.attempts += hop == 0
                if self.config.proxy is not None:
                    await self._check_name(url)
                async with self._session.get(url, allow_redirects=False) as response:
                    if picture:
                        self._check_opt_out(response)
                    location = response.headers.get("Location")
                    if response.status not in REDIRECTS or not location:
                        if response.status != 200:
                            raise self._refused(response, host, budget)
                        return await self._body(response, picture, budget)
            url = url.join(parse(location))
        raise Ended(Outcome.TOO_MANY_REDIRECTS, f"more than {self.config.max_redirects}")

    def _host(self, name: str) -> Host:
        if (host := self._hosts.get(name)) is None:
            host = self._hosts[name] = Host(self.config.connections_per_host, self.config.requests_per_second_per_host)
        return host

    async def _check_name(self, url: URL) -> None:
        """A proxy connects for us, so the connector's guards see only the proxy: resolve and check the name here."""
        name = url.raw_host or ""
        if self._checked_names.get(name, 0.0) < time.monotonic():
            await self._resolver.resolve(name, url.port or 0)
            self._checked_names[name] = time.monotonic() + DNS_CACHE_S

    async def _obey_robots(self, url: URL, host: Host, budget: Budget) -> None:
        origin = url.origin()
        rules = robots_memory.get(str(origin))
        if rules is None:
            if (asking := self._asking_robots.get(str(origin))) is None:
                asking = self._asking_robots[str(origin)] = asyncio.create_task(self._ask_robots(origin))
            with budget.standing_still():  # asking has a budget of its own
                rules = await asyncio.shield(asking)
        rules.check(url, self._product)
        delay = rules.crawl_delay_s(self._product)
        if delay > self.config.timeout_s:
            raise Ended(Outcome.ROBOTS_TXT, f"its Crawl-delay of {delay:g} s is longer than timeout_s")
        host.slow_down(delay)

    async def _ask_robots(self, origin: URL) -> robots.Rules:
        try:
            rules = robots.from_text(await self._within(Budget(self.config.timeout_s), origin / "robots.txt", picture=False))
        except Ended as end:
            rules = robots.from_failure(end)
        finally:
            del self._asking_robots[str(origin)]
        robots_memory.keep(str(origin), rules)
        return rules

    def _check_opt_out(self, response: aiohttp.ClientResponse) -> None:
        headers = response.headers
        if word := opted_out(headers.getall("X-Robots-Tag", []), self._product, self.config.opt_out_directives):
            raise Ended(Outcome.OPTED_OUT, f"X-Robots-Tag: {word}", response.status)
        if self.config.tdm_reservation and reserved(headers.getall("TDM-Reservation", [])):
            raise Ended(Outcome.OPTED_OUT, "TDM-Reservation: 1", response.status)

    def _refused(self, response: aiohttp.ClientResponse, host: Host, budget: Budget) -> Ended:
        """The end by a status other than 200; the host's other URLs wait too when it said that we ask too often, or when to come back."""
        outcome, reason = of_status(response.status), response.reason or ""
        if response.status not in PASSING_STATUSES:
            return Ended(outcome, reason, response.status)
        pause_s = retry_after_s(response.headers.get("Retry-After"))
        if pause_s is None and response.status == 429:
            pause_s = backoff_s(self.config.backoff_s, budget.attempts)
        if pause_s is not None:
            host.pause(pause_s, outcome, response.status)
        return MayPass(outcome, reason, response.status, pause_s or 0.0)

    async def _wait_for_memory(self, budget: Budget) -> None:
        with budget.standing_still():
            await self._large_bodies.acquire()
        budget.holds_large_body = True

    def _give_memory_back(self, budget: Budget) -> None:
        if budget.holds_large_body:
            self._large_bodies.release()
            budget.holds_large_body = False

    async def _body(self, response: aiohttp.ClientResponse, picture: bool, budget: Budget) -> bytes:
        """Whole, or for a robots.txt as much of it as counts."""
        cap = self.config.max_bytes if picture else robots.MAX_BYTES
        if picture and response.content_length is not None and response.content_length > cap:
            raise Ended(Outcome.TOO_LARGE, f"Content-Length {response.content_length} bytes", response.status)
        pieces, size = [], 0
        try:
            async for piece in response.content.iter_any():
                pieces.append(piece)
                size += len(piece)
                if size > cap and picture:
                    raise Ended(Outcome.TOO_LARGE, f"more than {cap} bytes", response.status)
                if size > cap:
                    break
                if size > LARGE_BYTES and not budget.holds_large_body:
                    await self._wait_for_memory(budget)
        except (aiohttp.ClientPayloadError, aiohttp.ClientConnectionError) as error:  # fewer bytes than announced
            raise MayPass(Outcome.TRUNCATED, f"{size} bytes of {response.content_length or 'unknown'}: {error}", response.status) from error
        return _decoded(b"".join(pieces), response, cap)


def _decoded(body: bytes, response: aiohttp.ClientResponse, cap: int) -> bytes:
    """Without the compression that some servers send though none is asked for; an unknown coding is more often a wrong header than a coding."""
    if response.headers.get("Content-Encoding", "").strip().lower() not in ("gzip", "x-gzip", "deflate"):
        return body
    decompressor = zlib.decompressobj(GZIP_OR_ZLIB)
    try:
        plain = decompressor.decompress(body, cap + 1)
    except zlib.error as error:
        raise Ended(Outcome.BAD_RESPONSE, f"Content-Encoding: {error}", response.status) from error
    if len(plain) > cap:
        raise Ended(Outcome.TOO_LARGE, f"more than {cap} bytes when decompressed", response.status)
    if not decompressor.eof:
        raise Ended(Outcome.TRUNCATED, "the compressed body has no end", response.status)
    return plain


@functools.cache
def tls_context(ca_file: str | None) -> ssl.SSLContext:
    """The system's certificates and those in `ca_file`; made once in a process, since reading the system's takes 40 ms of CPU.

    Raises:
        ConfigError: the file is missing or holds no certificate.
    """
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    if ca_file is not None:
        try:
            context.load_verify_locations(ca_file)
        except OSError as error:  # ssl.SSLError is one
            raise ConfigError(f"ingest.fetch.ca_file {ca_file}: expected a file with certificates in PEM ({error.strerror or error})") from error
    return context


def _user_agent(config: FetchConfig) -> str:
    return config.user_agent if config.contact is None else f"{config.user_agent} (+{config.contact})"


def _ended(error: Exception, url: URL) -> Ended:
    """What an exception on the way to the response means; the order is from special to general."""
    text = str(error) or type(error).__name__
    if isinstance(error, BlockedAddress):
        return Ended(Outcome.BLOCKED_ADDRESS, text)
    if isinstance(error, aiohttp.ClientConnectorDNSError | socket.gaierror):
        kind = MayPass if error.errno == socket.EAI_AGAIN else Ended
        return kind(Outcome.DNS_FAILED, text)
    if isinstance(error, aiohttp.ClientSSLError | aiohttp.ServerFingerprintMismatch | ssl.SSLError):
        return Ended(Outcome.TLS_FAILED, text)
    if isinstance(error, aiohttp.ClientHttpProxyError):
        kind = MayPass if error.status in PASSING_STATUSES else Ended
        return kind(Outcome.CONNECTION_FAILED, f"the proxy answers {error.status} {error.message}")
    if isinstance(error, TimeoutError):
        return MayPass(Outcome.TIMEOUT, f"no connection: {text}")
    if isinstance(error, aiohttp.InvalidURL | ValueError):  # UnicodeError of a host name is a ValueError
        return Ended(Outcome.BAD_URL, text)
    if isinstance(error, aiohttp.ClientConnectionError | OSError):
        return MayPass(Outcome.CONNECTION_FAILED, text)
    if isinstance(error, aiohttp.ClientError | HttpProcessingError):
        return MayPass(Outcome.BAD_RESPONSE, text)  # on a kept connection it may be the surplus of the response before
    log.error("unexpected while fetching %s", url, exc_info=error)
    return Ended(Outcome.UNEXPECTED_ERROR, f"{type(error).__name__}: {error}")
