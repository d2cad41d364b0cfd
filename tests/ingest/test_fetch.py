"""What fetching one URL ends in, over real HTTP."""

import asyncio
import socket
import time
from typing import Any

import pytest

from ingest.config import FetchConfig
from ingest.fetch import Fetched, Fetcher
from ingest.outcomes import Outcome


def fetch(*urls: str, **settings: object) -> list[Fetched]:
    config = FetchConfig.model_validate({"allow_loopback": True, "timeout_s": 2, "max_bytes": 100_000, "attempts": 1} | settings)

    async def all_of_them() -> list[Fetched]:
        async with Fetcher(config) as fetcher:
            return await asyncio.gather(*(fetcher.fetch(url) for url in urls))

    return asyncio.run(all_of_them())


CASES = [
    ("good/1", Outcome.SUCCESS, 200),
    ("mirror/1", Outcome.SUCCESS, 200),
    ("status/404", Outcome.HTTP_404, 404),
    ("status/403", Outcome.HTTP_403, 403),
    ("status/429", Outcome.HTTP_429, 429),
    ("status/500", Outcome.HTTP_5XX, 500),
    ("status/503", Outcome.HTTP_5XX, 503),
    ("status/418", Outcome.HTTP_STATUS_OTHER, 418),
    ("status/206", Outcome.HTTP_STATUS_OTHER, 206),
    ("status/302", Outcome.HTTP_STATUS_OTHER, 302),  # without a Location
    ("truncated/1", Outcome.TRUNCATED, 200),
    ("private/1", Outcome.BLOCKED_ADDRESS, None),
    ("metadata/1", Outcome.BLOCKED_ADDRESS, None),
    ("file/1", Outcome.BAD_URL, None),
    ("loop/1", Outcome.TOO_MANY_REDIRECTS, None),
    ("huge/1", Outcome.TOO_LARGE, 200),
    ("announced/1", Outcome.TOO_LARGE, 200),
    ("noai/1", Outcome.OPTED_OUT, 200),
    ("garbage/1", Outcome.BAD_RESPONSE, None),
]


@pytest.mark.parametrize(("path", "outcome", "status"), CASES)
def test_every_answer_ends_in_its_outcome(path: str, outcome: Outcome, status: int | None, web: Any) -> None:
    [fetched] = fetch(web.url(path))
    assert (fetched.outcome, fetched.status) == (outcome, status), fetched.detail


def test_the_deadline_is_wall_time_though_bytes_keep_coming(web: Any) -> None:
    started = time.monotonic()
    [fetched] = fetch(web.url("slow/1"), timeout_s=1)
    assert fetched.outcome is Outcome.TIMEOUT
    assert time.monotonic() - started < 3


def test_five_redirects_are_followed_and_no_more(web: Any) -> None:
    fetch(web.url("loop/1"))
    assert sum(web.asked.values()) == 6


def test_loopback_is_refused_without_the_setting(web: Any) -> None:
    [fetched] = fetch(web.url("good/1"), allow_loopback=False)
    assert fetched.outcome is Outcome.BLOCKED_ADDRESS
    assert not web.asked


def test_a_name_that_resolves_to_loopback_is_refused(web: Any) -> None:
    [fetched] = fetch(web.url("good/1").replace("127.0.0.1", "localhost"), allow_loopback=False)
    assert fetched.outcome is Outcome.BLOCKED_ADDRESS
    assert not web.asked


def test_a_closed_port_is_a_failed_connection() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound but not listening
        [fetched] = fetch(f"http://127.0.0.1:{held.getsockname()[1]}/")
    assert fetched.outcome is Outcome.CONNECTION_FAILED


@pytest.mark.parametrize("url", ["", "nothing", "http://", "http://a:99999/", "file:///etc/passwd", "http://" + "a" * 300 + "/", "http://[::1", "http://a..b/"])
def test_what_is_no_url_is_a_bad_url_or_an_unknown_name(url: str) -> None:
    [fetched] = fetch(url)
    assert fetched.outcome in (Outcome.BAD_URL, Outcome.DNS_FAILED)


def test_an_unknown_name_is_a_dns_failure() -> None:
    [fetched] = fetch("http://no-such-host.invalid/a.jpg")
    assert fetched.outcome is Outcome.DNS_FAILED


def test_the_crawler_says_who_it_is(web: Any) -> None:
    fetch(web.url("good/1"), user_agent="albef-ingest/0.1 (+mailto:crawler@example.org)")
    assert web.user_agents == {"albef-ingest/0.1 (+mailto:crawler@example.org)"}


def test_connections_to_one_host_stay_within_the_limit_and_are_kept_alive(web: Any) -> None:
    web.delay_s = 0.01
    assert all(fetched.outcome is Outcome.SUCCESS for fetched in fetch(*(web.url(f"good/{number}") for number in range(40)), connections_per_host=3))
    assert web.connections <= 3
