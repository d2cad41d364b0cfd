"""Certificates, and what goes through a proxy."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from hostile_web import Proxy, Site, response, says

from ingest.config import FetchConfig
from ingest.outcomes import Outcome
from pipeline.core.errors import ConfigError

from .fetching import fetch


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
