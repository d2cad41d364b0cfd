"""robots.txt over real HTTP, as RFC 9309 has it."""

import asyncio
import time

import pytest
from hostile_web import Answer, Site, never, repeats, response, says, then_closes
from yarl import URL

from ingest import robots
from ingest.config import FetchConfig
from ingest.fetch import Fetched, Fetcher
from ingest.outcomes import Outcome


@pytest.fixture(autouse=True)
def no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new process's: a port, and with it an origin, may come back from an earlier test."""
    monkeypatch.setattr("ingest.fetch.robots_memory", robots.Memory())


def fetch(site: Site, *paths: str, **settings: object) -> list[Fetched]:
    config = FetchConfig.model_validate({"allow_loopback": True, "robots_txt": True, "attempts": 1, "timeout_s": 2} | settings)

    async def all_of_them() -> list[Fetched]:
        async with Fetcher(config) as fetcher:
            return await asyncio.gather(*(fetcher.fetch(site.url(path)) for path in paths))

    return asyncio.run(all_of_them())


def text(*lines: str) -> bytes:
    return response("\n".join(lines).encode())


RULES = text("User-agent: *", "Disallow: /", "", "User-agent: albef-ingest", "Disallow: /private/", "Allow: /private/open.jpg", "Disallow: /*.gif$")
PICTURE = says(response(b"picture"))


def test_what_the_host_disallows_for_us_is_not_asked_and_robots_txt_is_asked_once_a_process() -> None:
    paths = ["a.jpg", "private/a.jpg", "private/open.jpg", "b.gif"]
    with Site({"robots.txt": says(RULES), **dict.fromkeys(paths, PICTURE)}) as site:
        for _ in range(2):  # two shards
            ends = fetch(site, *paths)
            assert [end.outcome.value for end in ends] == ["success", "robots_txt", "success", "robots_txt"]
        assert (ends[1].attempts, ends[1].detail) == (0, "/private/a.jpg is disallowed for albef-ingest")
        assert {path: site.count(path) for path in paths} == {"a.jpg": 2, "private/a.jpg": 0, "private/open.jpg": 2, "b.gif": 0}
        assert site.count("robots.txt") == 1
        [other] = fetch(site, "a.jpg", user_agent="otherbot/1")
        assert other.outcome is Outcome.ROBOTS_TXT


def test_nothing_is_asked_for_without_the_setting() -> None:
    with Site({"robots.txt": says(text("User-agent: *", "Disallow: /")), "a": PICTURE}) as site:
        assert fetch(site, "a", robots_txt=False)[0].outcome is Outcome.SUCCESS
        assert site.count("robots.txt") == 0


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (says(response(b"", "404 Not Found")), "success"),
        (says(response(b"", "403 Forbidden")), "success"),
        (says(response(b"", "302 Found", "Location: /robots.txt")), "success"),
        (says(response(b"", "302 Found", "Location: /elsewhere")), "robots_txt"),
        (says(response(b"<html>not rules</html>")), "success"),
        (says(response(b"\xff\x00\xfe" * 1000)), "success"),
        (says(response(b"x", "200 OK", "X-Robots-Tag: noindex")), "success"),
        (says(response(b"", "500 Oops")), "robots_txt"),
        (says(response(b"", "503 Busy")), "robots_txt"),
        (says(response(b"", "302 Found", "Location: http://10.0.0.1/robots.txt")), "blocked_address"),
        (then_closes(), "connection_failed"),
        (never, "timeout"),
        (repeats(response(b"", length=10**9), b"# a comment without an end\n" * 1000), "success"),
        (repeats(response(b"User-agent: *\nDisallow: /\n", length=10**9), b"# a comment without an end\n" * 1000), "robots_txt"),
    ],
)
def test_every_answer_to_robots_txt_allows_or_forbids(answer: Answer, outcome: str) -> None:
    with Site({"robots.txt": answer, "a": PICTURE, "elsewhere": says(text("User-agent: *", "Disallow: /a"))}) as site:
        [end] = fetch(site, "a", timeout_s=1)
        assert end.outcome.value == outcome, end.detail
        assert site.count("a") == (outcome == "success")


def test_the_host_a_redirect_leads_to_has_its_own_rules() -> None:
    with (
        Site({"robots.txt": says(text("User-agent: *", "Disallow: /"))}) as strict,
        Site({"a": says(response(b"", "302 Found", f"Location: {strict.url('b')}"))}) as site,
    ):
        [end] = fetch(site, "a")
        assert (end.outcome, strict.count("b")) == (Outcome.ROBOTS_TXT, 0)


def test_a_crawl_delay_spaces_requests_and_an_endless_one_forbids_them() -> None:
    with Site({"robots.txt": says(text("User-agent: *", "Crawl-delay: 0.2")), "a": PICTURE}) as site:
        assert {end.outcome for end in fetch(site, "a", "a", "a", timeout_s=0.3)} == {Outcome.SUCCESS}
        times = site.times("a")
        assert times[-1] - times[0] >= 0.35
    with Site({"robots.txt": says(text("User-agent: *", "Crawl-delay: 86400")), "a": PICTURE}) as site:
        [end] = fetch(site, "a")
        assert (end.outcome, end.detail) == (Outcome.ROBOTS_TXT, "its Crawl-delay of 86400 s is longer than timeout_s")


def test_the_memory_is_bounded_and_forgets_what_was_used_least_lately() -> None:
    memory = robots.Memory()
    for number in range(50):
        memory.keep(f"http://h{number}", robots.from_text(b"#" * robots.MAX_BYTES))
        assert memory.get("http://h0") is not None
    kept = [number for number in range(50) if memory.get(f"http://h{number}")]
    assert kept[0] == 0
    assert kept[1:] == list(range(50 - len(kept) + 1, 50))
    assert len(kept) * robots.MAX_BYTES <= robots.MEMORY_BYTES


def test_rules_are_asked_for_again_after_a_day(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, now = robots.Memory(), time.monotonic()
    memory.keep("http://h", robots.from_text(b"User-agent: *\nDisallow: /"))
    assert memory.get("http://h") is not None
    monkeypatch.setattr(time, "monotonic", lambda: now + 24 * 3600 + 1)
    assert memory.get("http://h") is None


def test_a_hostile_robots_txt_costs_little() -> None:
    rules = robots.from_text(b"User-agent: *\n" + b"Disallow: /*a*a*a*a*a*a*a*a*a*a*b$\n" * 14_000)
    started = time.process_time()
    rules.check(URL("http://h/" + "a" * 2000), "albef-ingest")
    assert time.process_time() - started < 5  # seconds; a backtracking pattern would take for ever
