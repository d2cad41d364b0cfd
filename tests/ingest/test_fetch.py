"""What fetching one URL ends in, over real HTTP."""

import asyncio
import errno
import gzip
import itertools
import socket
import time
import zlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
import trustme
from hostile_web import CHUNKED, Proxy, Site, never, repeats, response, says, then_closes

from ingest.config import FetchConfig
from ingest.fetch import LARGE_BODIES, Fetched, Fetcher
from ingest.outcomes import Outcome
from pipeline.core.errors import ConfigError


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


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str | int]]:
    """Names this test's machine knows: what each look-up in turn gives, an address or an error number; `asked` is the list of look-ups."""
    known: dict[str, list[str | int]] = {"asked": []}
    real = socket.getaddrinfo

    def getaddrinfo(host: str, port: int, *rest: Any) -> Any:
        if host not in known:
            return real(host, port, *rest)
        known["asked"].append(host)
        answer = known[host].pop(0) if len(known[host]) > 1 else known[host][0]
        if isinstance(answer, int):
            raise socket.gaierror(answer, "as the test says")
        return [(socket.AF_INET6 if ":" in answer else socket.AF_INET, socket.SOCK_STREAM, 6, "", (answer, port))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return known


@pytest.mark.parametrize("address", ["10.0.0.1", "169.254.169.254", "::1", "::ffff:192.168.0.1", "64:ff9b::a00:1", "fd00::1", "0.0.0.0"])
def test_a_name_that_leads_inside_is_refused_at_every_hop(address: str, names: dict[str, list[str | int]]) -> None:
    names["inside.example"] = [address]
    with Site({"a": says(response(b"", "302 Found", "Location: http://inside.example/secret"))}) as site:
        ends = fetch(site.url("a"), "http://inside.example/secret", allow_loopback=True) if address != "::1" else []
        ends += fetch("http://inside.example/secret", allow_loopback=False)
    assert {end.outcome for end in ends} == {Outcome.BLOCKED_ADDRESS}


def test_a_name_is_resolved_once_and_what_it_says_later_does_not_count(names: dict[str, list[str | int]]) -> None:
    names["pictures.example"] = ["127.0.0.1", "10.0.0.1"]
    with Site(
        {"a": then_closes(response(b"", "302 Found", "Location: /b", "Connection: close")), "b": then_closes(response(b"b", "200 OK", "Connection: close"))}
    ) as site:
        ends = fetch(site.url("a", host="pictures.example"), site.url("b", host="pictures.example"), connections_per_host=1)
        assert site.connections == 3
    assert {end.outcome for end in ends} == {Outcome.SUCCESS}
    assert names["asked"] == ["pictures.example"]


def test_a_name_server_that_is_busy_is_asked_again_and_an_unknown_name_is_not(names: dict[str, list[str | int]]) -> None:
    names["busy.example"] = [socket.EAI_AGAIN, "127.0.0.1"]
    names["gone.example"] = [socket.EAI_NONAME]
    with Site({"a": says(response(b"a"))}) as site:
        busy, gone = fetch(site.url("a", host="busy.example"), site.url("a", host="gone.example"), attempts=3, backoff_s=0.01)
    assert (busy.outcome, busy.attempts) == (Outcome.SUCCESS, 2)
    assert (gone.outcome, gone.attempts) == (Outcome.DNS_FAILED, 1)


def test_only_the_ports_in_the_settings_are_asked() -> None:
    config = FetchConfig(ports=[80, 8080])
    assert config.ports == [80, 8080]
    ends = fetch("http://1.1.1.1:22/", "http://1.1.1.1:6379/a.jpg", "https://1.1.1.1/", allow_loopback=False, ports=[80, 8080])
    assert {(end.outcome, end.attempts) for end in ends} == {(Outcome.BLOCKED_ADDRESS, 0)}
    assert "port 22 is not one of 80, 8080" in ends[0].detail


def test_a_machine_without_file_descriptors_is_no_rows_fault(web: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.socket

    def no_more(*arguments: Any, **named: Any) -> socket.socket:
        raise OSError(errno.EMFILE, "Too many open files")

    async def try_it() -> None:
        async with Fetcher(FetchConfig(allow_loopback=True)) as fetcher:
            monkeypatch.setattr(socket, "socket", no_more)
            try:
                with pytest.raises(OSError, match="Too many open files"):
                    await fetcher.fetch(web.url("good/1"))
            finally:
                monkeypatch.setattr(socket, "socket", real)

    asyncio.run(try_it())


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def secure(authority: trustme.CA) -> Iterator[Site]:
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "pictures.example").configure_cert(context)
    with Site({"a": says(response(b"secret")), "down": says(response(b"", "302 Found", "Location: ftp://127.0.0.1/a"))}, tls=context) as site:
        yield site


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> str:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return str(tmp_path / "ca.pem")


def test_https_is_kept_alive_with_certificates_that_are_trusted(secure: Site, ca_file: str) -> None:
    ends = fetch(*[secure.url("a")] * 5, ca_file=ca_file, connections_per_host=1)
    assert {(end.outcome, end.body) for end in ends} == {(Outcome.SUCCESS, b"secret")}
    assert secure.connections == 1
    [scheme] = fetch(secure.url("down"), ca_file=ca_file)
    assert scheme.outcome is Outcome.BAD_URL


def test_a_certificate_nobody_vouches_for_or_for_another_name_fails_once(secure: Site, ca_file: str, names: dict[str, list[str | int]]) -> None:
    names["other.example"] = ["127.0.0.1"]
    [unknown] = fetch(secure.url("a"), attempts=3)
    [other] = fetch(secure.url("a", host="other.example"), attempts=3, ca_file=ca_file)
    assert [(end.outcome, end.attempts) for end in (unknown, other)] == [(Outcome.TLS_FAILED, 1)] * 2
    assert secure.count() == 0


def test_a_ca_file_that_is_none_is_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("nothing")
    for name in ("missing.pem", "empty.pem"):
        with pytest.raises(ConfigError, match=rf"ingest\.fetch\.ca_file .*{name}: expected a file with certificates"):
            fetch("http://127.0.0.1/", ca_file=str(tmp_path / name))


def test_everything_goes_through_the_proxy_https_in_a_tunnel(secure: Site, ca_file: str, names: dict[str, list[str | int]]) -> None:
    names["pictures.example"] = ["127.0.0.1"]
    with Site({"a": says(response(b"plain"))}) as site, Proxy() as proxy:
        urls = [site.url("a", host="pictures.example"), secure.url("a", host="pictures.example")]
        plain, tunnelled = fetch(*urls, proxy=proxy.url(), ca_file=ca_file)
        assert sorted(proxy.asked) == sorted([f"GET {urls[0]}", f"CONNECT pictures.example:{secure.port}"])
    assert (plain.outcome, plain.body) == (Outcome.SUCCESS, b"plain"), plain.detail
    assert (tunnelled.outcome, tunnelled.body) == (Outcome.SUCCESS, b"secret"), tunnelled.detail


def test_the_guard_stands_before_the_proxy_too(names: dict[str, list[str | int]]) -> None:
    names["inside.example"] = ["10.0.0.1"]
    inside = ["http://10.0.0.1/", "https://169.254.169.254/", "http://inside.example/a", "https://inside.example/a", "http://0x7f.1/", "file:///etc/passwd"]
    with Site({"a": says(response(b"", "302 Found", "Location: http://inside.example/a"))}) as site, Proxy() as proxy:
        ends = fetch(*inside, site.url("a"), proxy=proxy.url())
        assert [end.outcome for end in ends] == [Outcome.BLOCKED_ADDRESS] * 5 + [Outcome.BAD_URL, Outcome.BLOCKED_ADDRESS]
        assert proxy.asked == [f"GET {site.url('a')}"]
        [loopback] = fetch(site.url("a"), proxy=proxy.url(), allow_loopback=False)
        assert loopback.outcome is Outcome.BLOCKED_ADDRESS


def test_a_busy_name_server_before_a_proxy_costs_attempts_too(names: dict[str, list[str | int]]) -> None:
    names["busy.example"] = [socket.EAI_AGAIN]
    with Proxy() as proxy:
        [fetched] = fetch("http://busy.example/a", proxy=proxy.url(), attempts=3, backoff_s=0.0)
        assert proxy.asked == []
    assert (fetched.outcome, fetched.attempts, len(names["asked"])) == (Outcome.DNS_FAILED, 3, 3)


def test_a_proxy_that_is_gone_or_refuses_is_a_failed_connection(names: dict[str, list[str | int]]) -> None:
    names["pictures.example"] = ["127.0.0.1"]
    with Proxy(answer=b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n") as proxy:
        address = proxy.url()
        [refused] = fetch("https://pictures.example/a", proxy=address)
    [gone] = fetch("https://pictures.example/a", proxy=address, attempts=2, backoff_s=0.01)
    assert (refused.outcome, refused.detail, refused.attempts) == (Outcome.CONNECTION_FAILED, "the proxy answers 403 Forbidden", 1)
    assert (gone.outcome, gone.attempts) == (Outcome.CONNECTION_FAILED, 2)


@pytest.mark.parametrize("settings", [{"proxy": "host:3128"}, {"proxy": "socks5://host:1"}, {"contact": "a\r\nX: y"}, {"user_agent": ""}])
def test_settings_that_cannot_work_are_refused(settings: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        FetchConfig.model_validate(settings)
