"""What may pass is asked for again, politely: attempts, deadlines, Retry-After, the rate of a host."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hostile_web import Site, never, repeats, response, says, then_closes

from ingest.config import FetchConfig
from ingest.fetch import Fetched, Fetcher
from ingest.outcomes import Outcome

from .fetching import fetch


@pytest.mark.parametrize("status", ["429 Too Many", "500 Oops", "502 Bad Gateway", "503 Busy", "504 Late"])
def test_what_may_pass_is_asked_for_again(status: str) -> None:
    with Site({"a": says(response(b"", status), response(b"", status), response(b"whole"))}) as site:
        [fetched] = fetch(site.url("a"), attempts=3, backoff_s=0.01)
    assert (fetched.outcome, fetched.body, fetched.attempts) == (Outcome.SUCCESS, b"whole", 3)


@pytest.mark.parametrize(
    "answer",
    [
        response(b"", "404 Not Found"),
        response(b"", "403 Forbidden"),
        response(b"", "410 Gone"),
        response(b"", "501 Not Implemented"),
        response(b"x", "200 OK", "X-Robots-Tag: noai"),
    ],
)
def test_what_will_not_pass_is_asked_for_once(answer: bytes) -> None:
    with Site({"a": says(answer)}) as site:
        [fetched] = fetch(site.url("a"), attempts=3, backoff_s=0.01)
        assert site.count() == fetched.attempts == 1


def test_dropped_connections_and_cut_bodies_are_asked_for_again() -> None:
    whole = response(b"0123456789")
    with Site({"dropped": then_closes(), "cut": then_closes(whole[:-4])}) as site:
        dropped, cut = fetch(site.url("dropped"), site.url("cut"), attempts=3, backoff_s=0.01)
        assert site.count("cut") == 3
        assert 3 <= site.count("dropped") <= 6  # aiohttp asks at once again by itself, lest it was a kept connection gone stale
    assert (dropped.outcome, dropped.attempts) == (Outcome.CONNECTION_FAILED, 3)
    assert (cut.outcome, cut.attempts) == (Outcome.TRUNCATED, 3)


def test_a_wait_that_the_deadline_does_not_leave_is_not_begun() -> None:
    with Site({"a": says(response(b"", "503 Busy"))}) as site:
        [fetched] = fetch(site.url("a"), attempts=100, backoff_s=0.2, timeout_s=1)
        assert fetched.outcome is Outcome.HTTP_5XX
        assert 2 <= site.count() == fetched.attempts <= 5  # waits of 0.1 to 0.3 s, then 0.2 to 0.6, 0.4 to 1.2
    assert fetched.latency_s < 1


def test_the_deadline_covers_all_attempts_together() -> None:
    with Site({"a": never}) as site:
        [fetched] = fetch(site.url("a"), attempts=5, timeout_s=0.5)
    assert fetched.outcome is Outcome.TIMEOUT
    assert 0.5 <= fetched.latency_s < 1.5


@pytest.mark.parametrize("value", [lambda: "1", lambda: format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)])
def test_a_retry_after_is_obeyed_by_all_urls_of_the_host(value: Callable[[], str]) -> None:
    with Site({"a": says(response(b"", "429 Slow Down", f"Retry-After: {value()}"), response(b"a")), "b": says(response(b"b"))}) as site:

        async def one_after_the_other() -> list[Fetched]:
            async with Fetcher(FetchConfig(allow_loopback=True, timeout_s=10, backoff_s=0.01)) as fetcher:
                first = asyncio.create_task(fetcher.fetch(site.url("a")))
                while not site.count():
                    await asyncio.sleep(0.01)
                await asyncio.sleep(0.1)
                return [await fetcher.fetch(site.url("b")), await first]

        b, a = asyncio.run(one_after_the_other())
        assert (a.outcome, a.attempts, b.outcome, b.attempts) == (Outcome.SUCCESS, 2, Outcome.SUCCESS, 1)
        asked, again = site.times("a")
        assert again - asked >= 0.9  # an HTTP date has whole seconds
        assert site.times("b")[0] - asked >= 0.9


def test_a_retry_after_beyond_the_deadline_ends_the_hosts_urls_without_waiting_or_asking() -> None:
    with Site({"a": says(response(b"", "429 Slow Down", "Retry-After: 3600"))}) as site:
        config = FetchConfig(allow_loopback=True, timeout_s=5)

        async def one_after_the_other() -> list[Fetched]:
            async with Fetcher(config) as fetcher:
                return [await fetcher.fetch(site.url(path)) for path in ("a", "b", "a")]

        ends = asyncio.run(one_after_the_other())
        assert [(end.outcome, end.status, end.attempts) for end in ends] == [(Outcome.HTTP_429, 429, attempts) for attempts in (1, 0, 0)]
        assert "not asked" in ends[1].detail
        assert site.count() == 1
    assert sum(end.latency_s for end in ends) < 5


def test_requests_to_one_host_are_spaced_by_the_rate() -> None:
    with Site({"a": says(response(b"a"))}) as site:
        ends = fetch(*[site.url("a")] * 6, requests_per_second_per_host=10, timeout_s=0.3)
        assert {end.outcome for end in ends} == {Outcome.SUCCESS}, "waiting for a turn is not part of the deadline"
        times = site.times("a")
    assert times[-1] - times[0] >= 0.45


def test_waiting_for_a_free_connection_is_not_part_of_the_deadline() -> None:
    with Site({"a": repeats(response(b"", length=10), b"x", 10, every_s=0.02)}) as site:
        ends = fetch(*[site.url("a")] * 8, connections_per_host=1, timeout_s=1)
    assert {end.outcome for end in ends} == {Outcome.SUCCESS}
    assert all(end.latency_s < 1 for end in ends)
