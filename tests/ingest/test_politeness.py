"""Waiting: for a turn, for what the server asked, and never for somebody else's host."""

import asyncio
from collections import Counter
from datetime import UTC, datetime
from urllib.parse import urlsplit

import pytest

from ingest.politeness import Budget, Host, HostRotation, backoff_s, retry_after_s

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("", None),
        ("0", 0),
        ("7", 7),
        (" 120 ", 120),
        ("-1", None),
        ("1.5", None),
        ("soon", None),
        ("Thu, 01 Jan 2026 00:00:30 GMT", 30),
        ("Thursday, 01-Jan-26 00:01:00 GMT", 60),
        ("Thu Jan  1 00:00:10 2026", 10),
        ("Wed, 31 Dec 2025 23:00:00 GMT", 0),
        ("Thu, 01 Jan 99999 00:00:00 GMT", None),
        ("9" * 400, float("inf")),
    ],
)
def test_a_retry_after_is_seconds_or_a_date(value: str | None, seconds: float | None) -> None:
    assert retry_after_s(value, NOW) == seconds


def test_waits_double_and_differ() -> None:
    for attempts in range(1, 6):
        waits = {backoff_s(0.5, attempts) for _ in range(100)}
        assert len(waits) > 50
        assert 0.25 * 2 ** (attempts - 1) <= min(waits) <= max(waits) <= 0.75 * 2 ** (attempts - 1)


def test_a_budget_runs_out_unless_it_stands_still() -> None:
    async def spend(still: bool) -> float:
        budget = Budget(0.1)
        async with budget.timer:
            if still:
                with budget.standing_still():
                    await asyncio.sleep(0.2)
            else:
                await asyncio.sleep(0.2)
            return budget.left_s
        raise AssertionError

    assert 0 < asyncio.run(spend(still=True)) <= 0.1
    with pytest.raises(TimeoutError):
        asyncio.run(spend(still=False))


def test_turns_of_a_host_are_limited_and_a_cancelled_one_is_given_back() -> None:
    async def crowd() -> int:
        host, inside, most = Host(3, None), 0, 0

        async def visit() -> None:
            nonlocal inside, most
            async with host.turn(Budget(10)):
                inside += 1
                most = max(most, inside)
                try:
                    await asyncio.sleep(0.01)
                finally:
                    inside -= 1

        visits = [asyncio.create_task(visit()) for _ in range(20)]
        await asyncio.sleep(0.005)
        for cancelled in visits[::2]:
            cancelled.cancel()
        await asyncio.gather(*visits, return_exceptions=True)
        await asyncio.wait_for(asyncio.gather(visit(), visit(), visit()), 5)
        return most

    assert asyncio.run(crowd()) == 3


def rotate(rows: list[tuple[int, str]], lanes: int, lanes_per_host: int, seconds: dict[str, float]) -> tuple[list[int], dict[str, int]]:
    """The order in which rows end when fetching from a host takes so many seconds, and the most lanes each host had at once."""
    ended: list[int] = []
    busy: Counter[str] = Counter()
    most: dict[str, int] = {}
    urls = dict(rows)

    async def run() -> None:
        rotation = HostRotation(rows, lanes_per_host)

        async def lane() -> None:
            while True:
                async with rotation.row() as index:
                    if index is None:
                        return
                    host = urlsplit(urls[index]).netloc if "[" not in urls[index] else ""
                    busy[host] += 1
                    most[host] = max(busy[host], most.get(host, 0))
                    await asyncio.sleep(seconds.get(host, 0.0))
                    busy[host] -= 1
                    ended.append(index)

        await asyncio.wait_for(asyncio.gather(*(lane() for _ in range(lanes))), 20)

    asyncio.run(run())
    return ended, most


def test_a_slow_host_does_not_hold_up_the_others() -> None:
    rows = [(index, f"http://slow/{index}") for index in range(40)] + [(100 + index, f"http://h{index % 20}/{index}") for index in range(400)]
    ended, most = rotate(rows, lanes=8, lanes_per_host=2, seconds={"slow": 0.05})
    assert sorted(ended) == sorted(index for index, _ in rows)
    assert most["slow"] == 2
    assert max(ended.index(100 + index) for index in range(400)) < ended.index(sorted(e for e in ended if e < 40)[20]), "the rest is done long before"


@pytest.mark.parametrize("lanes", [1, 3, 50])
def test_every_row_is_handed_out_once_whatever_its_url(lanes: int) -> None:
    urls = ["", "nonsense", "http://[::1", "http://a/", "http://A:80/", "http://u@a/", "file:///x"] * 9
    ended, _ = rotate(list(enumerate(urls)), lanes, 1, {})
    assert sorted(ended) == list(range(len(urls)))


def test_no_rows_end_at_once() -> None:
    assert rotate([], 4, 2, {}) == ([], {})
