"""What fetching one URL ends in, over real HTTP."""

import asyncio
import gzip
import itertools
import socket
import time
import zlib
from typing import Any

import pytest
from hostile_web import CHUNKED, Site, response, says, then_closes

from ingest.config import FetchConfig
from ingest.fetch import LARGE_BODIES, Fetcher
from ingest.outcomes import Outcome

from .fetching import fetch

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
    ("nowhere/1", Outcome.BAD_URL, None),
    ("loop/1", Outcome.TOO_MANY_REDIRECTS, None),
    ("huge/1", Outcome.TOO_LARGE, 200),
    ("announced/1", Outcome.TOO_LARGE, 200),
    ("noai/1", Outcome.OPTED_OUT, 200),
    ("longer/1", Outcome.SUCCESS, 200),  # the body ends where its length says
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


def test_redirects_and_opt_outs_of_every_hop_count() -> None:
    pages = {
        "a": says(response(b"", "302 Found", "Location: /b", "X-Robots-Tag: noai")),
        "b": says(response(b"b")),
        "c": says(response(b"c", "200 OK", "TDM-Reservation: 1")),
    }
    with Site(pages) as site:
        hop, mining = fetch(site.url("a"), site.url("c"))
        [unreserved] = fetch(site.url("c"), tdm_reservation=False)
        assert site.count("b") == 0
    assert (hop.outcome, hop.detail) == (Outcome.OPTED_OUT, "X-Robots-Tag: noai")
    assert (mining.outcome, mining.detail) == (Outcome.OPTED_OUT, "TDM-Reservation: 1")
    assert unreserved.outcome is Outcome.SUCCESS


def test_a_contact_becomes_part_of_the_user_agent() -> None:
    with Site({"a": says(response(b"a"))}) as site:
        fetch(site.url("a"), contact="https://example.org/crawler")
        assert "User-Agent: albef-ingest/0.1 (+https://example.org/crawler)\r\n" in site.heads[0]
        assert "Accept-Encoding: identity\r\n" in site.heads[0]


SURPLUS = response(b"0123456789") + b"surplus"
SPLITS = [
    (),
    (len(SURPLUS) - 7,),
    (len(SURPLUS) - 3,),
    (len(SURPLUS) - 12,),
    (10,),
    (10, len(SURPLUS) - 12),
    (len(SURPLUS) - 17,),
    (len(SURPLUS) - 17, len(SURPLUS) - 7),
]


@pytest.mark.parametrize("cuts", SPLITS)
def test_a_body_ends_at_its_announced_length_in_whatever_packets_it_comes(cuts: tuple[int, ...]) -> None:
    edges = [0, *cuts, len(SURPLUS)]
    packets = [SURPLUS[start:end] for start, end in itertools.pairwise(edges)]
    with Site({"a": then_closes(*packets, pause_s=0.05)}) as site:
        [fetched] = fetch(site.url("a"))
    assert (fetched.outcome, fetched.body) == (Outcome.SUCCESS, b"0123456789"), fetched.detail


def test_surplus_that_comes_late_costs_the_next_url_of_the_connection_one_attempt() -> None:
    with Site({"a": then_closes(SURPLUS[:-7], SURPLUS[-7:], pause_s=0.1), "b": says(response(b"b"))}) as site:
        _, innocent = fetch(site.url("a"), site.url("b"), connections_per_host=1, attempts=2, backoff_s=0.01)
    assert (innocent.outcome, innocent.attempts) == (Outcome.SUCCESS, 2)


@pytest.mark.parametrize(
    "packets", [(CHUNKED + b"3\r\nabc\r\nzz\r\n",), (CHUNKED, b"3\r\nabc\r\nzz\r\n"), (CHUNKED + b"3\r\nabc\r\n", b"zz\r\n"), (CHUNKED, b"3\r\nabcd")]
)
def test_an_invalid_chunk_is_a_bad_response_at_once_in_whatever_packets_it_comes(packets: tuple[bytes, ...]) -> None:
    with Site({"a": then_closes(*packets, pause_s=0.05)}) as site:
        [fetched] = fetch(site.url("a"))
    assert fetched.outcome is Outcome.BAD_RESPONSE, fetched.detail


def test_surplus_bytes_are_never_taken_for_the_next_response() -> None:
    forged = response(b"first") + response(b"forged")
    with Site({"a": says(response(b"warm")), "b": says(forged), "c": says(response(b"own"))}) as site:

        async def in_turn() -> list[bytes]:
            async with Fetcher(FetchConfig(allow_loopback=True)) as fetcher:
                return [(await fetcher.fetch(site.url(path))).body for path in "abc"]

        assert asyncio.run(in_turn()) == [b"warm", b"first", b"own"]


def test_compression_that_nobody_asked_for_is_undone_within_the_byte_cap() -> None:
    bomb = gzip.compress(bytes(50_000_000))
    assert len(bomb) < 100_000
    pages = {
        "gzip": says(response(gzip.compress(b"picture"), "200 OK", "Content-Encoding: gzip")),
        "deflate": says(response(zlib.compress(b"picture"), "200 OK", "Content-Encoding: Deflate")),
        "unknown": says(response(b"picture", "200 OK", "Content-Encoding: utf-8")),
        "cut": says(response(gzip.compress(b"picture")[:-5], "200 OK", "Content-Encoding: gzip")),
        "wrong": says(response(b"picture", "200 OK", "Content-Encoding: gzip")),
        "bomb": says(response(bomb, "200 OK", "Content-Encoding: gzip")),
    }
    with Site(pages) as site:
        ends = dict(zip(pages, fetch(*map(site.url, pages)), strict=True))
    assert {path: end.outcome.value for path, end in ends.items()} == {
        "gzip": "success",
        "deflate": "success",
        "unknown": "success",
        "cut": "truncated",
        "wrong": "bad_response",
        "bomb": "too_large",
    }
    assert {ends[path].body for path in ("gzip", "deflate", "unknown")} == {b"picture"}


def test_only_a_few_large_bodies_are_held_at_a_time_and_all_come_through() -> None:
    large, held, most = 3_000_000, 0, 0
    cut = then_closes(response(bytes(large - 1), length=large))
    with Site({"large": says(response(bytes(large))), "small": says(response(b"small")), "cut": cut}) as site:

        async def keep(fetcher: Fetcher, path: str) -> Outcome:
            nonlocal held, most
            async with fetcher.fetching(site.url(path)) as fetched:
                held += len(fetched.body) == large
                most = max(most, held)
                await asyncio.sleep(0.1)
                held -= len(fetched.body) == large
            return fetched.outcome

        async def keep_all(paths: list[str]) -> list[Outcome]:
            async with Fetcher(FetchConfig(allow_loopback=True, timeout_s=20, attempts=2, backoff_s=0.01, connections_per_host=40)) as fetcher:
                return await asyncio.gather(*(keep(fetcher, path) for path in paths))

        paths = ["large", "small", "cut"] * 12
        outcomes = asyncio.run(keep_all(paths))
    expected = {"large": Outcome.SUCCESS, "small": Outcome.SUCCESS, "cut": Outcome.TRUNCATED}
    assert outcomes == [expected[path] for path in paths]
    assert 2 <= most <= LARGE_BODIES  # of 12 that could have been
