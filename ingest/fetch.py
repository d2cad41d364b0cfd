"""Fetch one URL within hard bounds: public addresses, wall-clock deadline, byte cap, redirect cap, whole bodies only."""

import asyncio
import logging
import ssl
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType

import aiohttp
from yarl import URL

from ingest.config import FetchConfig
from ingest.guard import BlockedAddress, GuardedResolver, check_url
from ingest.opt_out import opted_out
from ingest.outcomes import Ended, Outcome, of_status

log = logging.getLogger(__name__)

REDIRECTS = (301, 302, 303, 307, 308)
DNS_THREADS = 16
DNS_CACHE_S = 300


@dataclass(frozen=True)
class Fetched:
    """How fetching one URL ended; SUCCESS means that `body` is whole, not that it is a picture."""

    outcome: Outcome
    body: bytes
    status: int | None
    latency_s: float
    detail: str


class Fetcher:
    """One session for a shard: connections are kept alive, the TLS context is made once, a name is resolved once."""

    def __init__(self, config: FetchConfig) -> None:
        self.config = config
        self._hosts: dict[str | None, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(config.connections_per_host))

    async def __aenter__(self) -> "Fetcher":
        self._dns = ThreadPoolExecutor(DNS_THREADS, thread_name_prefix="dns")
        asyncio.get_running_loop().set_default_executor(self._dns)
        connector = aiohttp.TCPConnector(
            limit=0, ssl=ssl.create_default_context(), resolver=GuardedResolver(self.config.allow_loopback), ttl_dns_cache=DNS_CACHE_S
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),  # the deadline below covers everything
            headers={"User-Agent": self.config.user_agent, "Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity"},
        )
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._session.close()

    async def fetch(self, url: str) -> Fetched:
        """Never raises for what a URL or a server does; waiting for a free connection to the host is not part of the deadline."""
        try:
            parsed = URL(url)
        except (ValueError, TypeError) as error:
            return Fetched(Outcome.BAD_URL, b"", None, 0.0, str(error)[:200])
        async with self._hosts[parsed.host]:
            started = time.monotonic()
            try:
                body = await self._within_deadline(parsed)
            except Ended as end:
                return Fetched(end.outcome, b"", end.status, time.monotonic() - started, end.detail)
            return Fetched(Outcome.SUCCESS, body, 200, time.monotonic() - started, "")

    async def _within_deadline(self, url: URL) -> bytes:
        try:
            async with asyncio.timeout(self.config.timeout_s):
                return await self._follow(url)
        except Ended:
            raise
        except TimeoutError:
            raise Ended(Outcome.TIMEOUT, f"not done after {self.config.timeout_s:g} s") from None
        except Exception as error:
            raise _ended(error, url) from error

    async def _follow(self, url: URL) -> bytes:
        for _ in range(self.config.max_redirects + 1):
            check_url(url, self.config.allow_loopback)
            async with self._session.get(url, allow_redirects=False) as response:
                location = response.headers.get("Location")
                if response.status in REDIRECTS and location:
                    url = url.join(URL(location))
                    continue
                if response.status != 200:
                    raise Ended(of_status(response.status), response.reason or "", response.status)
                if word := opted_out(response.headers.getall("X-Robots-Tag", []), self.config.user_agent, self.config.opt_out_directives):
                    raise Ended(Outcome.OPTED_OUT, f"X-Robots-Tag: {word}", response.status)
                return await self._body(response)
        raise Ended(Outcome.TOO_MANY_REDIRECTS, f"more than {self.config.max_redirects}")

    async def _body(self, response: aiohttp.ClientResponse) -> bytes:
        cap = self.config.max_bytes
        if response.content_length is not None and response.content_length > cap:
            raise Ended(Outcome.TOO_LARGE, f"Content-Length {response.content_length} bytes", response.status)
        body = bytearray()
        try:
            async for piece in response.content.iter_any():
                body += piece
                if len(body) > cap:
                    raise Ended(Outcome.TOO_LARGE, f"more than {cap} bytes", response.status)
        except (aiohttp.ClientPayloadError, aiohttp.ClientConnectionError) as error:  # fewer bytes than announced
            raise Ended(Outcome.TRUNCATED, f"{len(body)} bytes of {response.content_length or 'unknown'}: {error}", response.status) from error
        return bytes(body)


def _ended(error: Exception, url: URL) -> Ended:
    """What an exception on the way to the response means; the order is from special to general."""
    if isinstance(error, BlockedAddress):
        return Ended(Outcome.BLOCKED_ADDRESS, str(error))
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return Ended(Outcome.DNS_FAILED, str(error))
    if isinstance(error, aiohttp.ClientSSLError | aiohttp.ServerFingerprintMismatch | ssl.SSLError):
        return Ended(Outcome.TLS_FAILED, str(error))
    if isinstance(error, aiohttp.InvalidURL | ValueError):  # UnicodeError of a host name is a ValueError
        return Ended(Outcome.BAD_URL, str(error))
    if isinstance(error, aiohttp.ClientConnectionError | OSError):
        return Ended(Outcome.CONNECTION_FAILED, str(error) or type(error).__name__)
    if isinstance(error, aiohttp.ClientError):
        return Ended(Outcome.BAD_RESPONSE, str(error))
    log.error("unexpected while fetching %s", url, exc_info=error)
    return Ended(Outcome.UNEXPECTED_ERROR, f"{type(error).__name__}: {error}")
