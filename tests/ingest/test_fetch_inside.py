"""Names and addresses: what leads inside is never asked, whoever says so."""

import asyncio
import errno
import socket
from typing import Any

import pytest
from hostile_web import Site, response, says, then_closes

from ingest.config import FetchConfig
from ingest.fetch import Fetcher
from ingest.outcomes import Outcome

from .fetching import fetch


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
