"""Addresses a crawler must not connect to, however they are written."""

import asyncio
import socket

import pytest
from yarl import URL

from ingest.guard import BlockedAddress, GuardedResolver, check_url, refusal

BLOCKED = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "10.255.255.255",
    "100.64.0.1",
    "100.127.255.254",
    "127.0.0.1",
    "127.0.0.2",
    "127.255.255.254",
    "168.63.129.16",
    "169.254.0.1",
    "169.254.169.254",
    "169.254.170.2",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.1",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.0.1",
    "192.168.255.255",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:7f00:1",
    "::127.0.0.1",
    "::ffff:0:0",
    "64:ff9b::7f00:1",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "3fff::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
    "ff0e::1",
    "not-an-address",
]

PUBLIC = [
    "1.1.1.1",
    "8.8.8.8",
    "93.184.216.34",
    "172.15.255.255",
    "172.32.0.1",
    "100.63.255.255",
    "100.128.0.1",
    "192.167.1.1",
    "2606:4700:4700::1111",
    "2a00:1450:4001::200e",
    "::ffff:8.8.8.8",
]

BLOCKED_URLS = [
    "http://127.0.0.1/",
    "http://127.0.0.1:8080/a.jpg",
    "http://[::1]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[::ffff:a9fe:a9fe]/",
    "http://169.254.169.254/latest/meta-data/",
    "http://2130706433/",
    "http://0x7f000001/",
    "http://0x7f.1/",
    "http://127.1/",
    "http://0177.0.0.1/",
    "http://127.0.0.1./",
    "http://user:pw@10.0.0.1/",
    "http://017700000001/",
    "http://0/",
    "https://192.168.1.1/",
    "http://1.2.3/",
    "http://[fe80::1]/",
]

BAD_URLS = [
    "file:///etc/passwd",
    "ftp://example.com/a.jpg",
    "data:image/png;base64,AAAA",
    "gopher://example.com/",
    "/relative.jpg",
    "javascript:1",
    "unix:/run/a",
]


@pytest.mark.parametrize("address", BLOCKED)
def test_addresses_inside_are_refused(address: str) -> None:
    assert refusal(address) is not None


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_allowed(address: str) -> None:
    assert refusal(address) is None


@pytest.mark.parametrize("url", BLOCKED_URLS)
def test_urls_with_a_literal_inside_address_are_refused(url: str) -> None:
    with pytest.raises(BlockedAddress):
        check_url(URL(url))


@pytest.mark.parametrize("url", BAD_URLS)
def test_other_schemes_are_no_urls_for_us(url: str) -> None:
    with pytest.raises(ValueError, match="not an http or https URL"):
        check_url(URL(url))


def test_names_are_left_to_the_resolver() -> None:
    check_url(URL("http://example.com/a.jpg"))
    check_url(URL("http://localhost/a.jpg"))


def test_loopback_is_allowed_on_request_and_nothing_else_with_it() -> None:
    assert refusal("127.0.0.1", allow_loopback=True) is None
    assert refusal("::1", allow_loopback=True) is None
    assert refusal("::ffff:127.0.0.1", allow_loopback=True) is None
    for address in ("10.0.0.1", "169.254.169.254", "0.0.0.0", "::", "192.168.0.1", "fe80::1"):
        assert refusal(address, allow_loopback=True) is not None


def _resolve(resolver: GuardedResolver, answers: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    def getaddrinfo(host: str, port: int, *_: object, **__: object) -> list[object]:
        return [(socket.AF_INET6 if ":" in a else socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, port)) for a in answers]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return [found["host"] for found in asyncio.run(resolver.resolve("pictures.example", 80))]


def test_a_name_that_leads_inside_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BlockedAddress, match="pictures"):
        _resolve(GuardedResolver(), ["192.168.1.7"], monkeypatch)


def test_one_inside_address_among_public_ones_refuses_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BlockedAddress):
        _resolve(GuardedResolver(), ["93.184.216.34", "::ffff:10.0.0.1"], monkeypatch)


def test_the_connector_gets_the_very_addresses_that_were_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _resolve(GuardedResolver(), ["93.184.216.34", "2606:4700::1"], monkeypatch) == ["93.184.216.34", "2606:4700::1"]
