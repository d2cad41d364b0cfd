"""Addresses a crawler must not connect to, however they are written."""

import asyncio
import socket

import pytest
from hostile_web import Site, says
from yarl import URL

from ingest.config import FetchConfig
from ingest.fetch import Fetched, Fetcher
from ingest.guard import BlockedAddress, GuardedResolver, GuardedSocket, check_url, refusal
from ingest.outcomes import Outcome

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
    "64:ff9b::10.0.0.1",
    "64:ff9b::8.8.8.8",  # NAT64: what is behind the translator is not ours to know
    "64:ff9b:1:7f00:1::",
    "::ffff:0:127.0.0.1",
    "::10.0.0.1",
    "fec0::ffff:1",
    "fe80::1%25lo",
    "::1%lo",
    "2001:0:7f00:1::",
    "2001:10::1",
    "2001:20::1",
    "2002:a9fe:a9fe::1",
    "4000::1",
    "192.0.0.170",
    "198.19.255.255",
    "100.100.100.200",  # metadata at Alibaba
    "255.255.255.254",
    "127.0.0.1.",
    "0177.0.0.1",
    "0x7f.0.0.1",
    "127.1",
    "2130706433",
    "",
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
    "http://[fe80::1%25eth0]/",
    "http://[::1%lo]/",
    "http://0X7F000001/",
    "http://0x7f.0x0.0x0.0x1/",
    "http://0177.1/",
    "http://0300.0250.1.1/",
    "http://3232235777/",
    "http://1.1.1.1@169.254.169.254/",
    "http://example.com:80@127.0.0.1/",
    "http://example.com%40@127.0.0.1/",
    "http://1.1.1.1 &@10.0.0.2# @8.8.8.8/",
    "http://127.0.0.1#@example.com/",
    "http://127.0.0.1?@example.com/",
    "http://127.0.0.1\t/",
    "http://１２７.0.0.1/",
    "http://127。0。0。1/",
    "http://127．0．0．1/",
    "http://①⑨②.①⑥⑧.①.①/",
    "http://127.0.0.1．/",
    "http://127.0.0.1../",
    "http://%31%32%37.0.0.1/",
    "http://999999999999/",
    "http://256.256.256.256/",
    "http://1.2.3.4.5/",
    "http://[::127.0.0.1]/",
    "http://[::ffff:10.1.2.3]/",
    "http://[64:ff9b::a9fe:a9fe]/",
    "http://[2002:7f00:1::]/",
    "http://[fec0::1]/",
    "http://[ff02::1]/",
    "http://255.255.255.255/",
    "http://224.0.0.1/",
    "http://192.0.2.7/",
    "http://100.64.3.4/",
    "http://metadata.google.internal@169.254.169.254/computeMetadata/v1/",
]

BAD_URLS = [
    "file:///etc/passwd",
    "ftp://example.com/a.jpg",
    "data:image/png;base64,AAAA",
    "gopher://example.com/",
    "/relative.jpg",
    "javascript:1",
    "unix:/run/a",
    "//127.0.0.1/a.jpg",
    "http:127.0.0.1",
    "http:///127.0.0.1/",
    "httpx://1.1.1.1/",
    "ws://1.1.1.1/",
]


def test_the_table_is_long() -> None:
    assert len({*BLOCKED, *BLOCKED_URLS, *BAD_URLS}) >= 120


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


def test_the_fetcher_asks_none_of_them_and_follows_no_redirect_to_one() -> None:
    inside = [url for url in BLOCKED_URLS if not _is_loopback(url)]
    pages = {str(number): says(b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: " + url.encode() + b"\r\n\r\n") for number, url in enumerate(inside)}
    with Site(pages) as site:
        direct = _fetch(BLOCKED_URLS, allow_loopback=False)
        redirected = _fetch([site.url(page) for page in pages], allow_loopback=True)
        assert site.count() == len(inside) > 30
    assert {url: end.outcome for url, end in zip(BLOCKED_URLS, direct, strict=True)} == dict.fromkeys(BLOCKED_URLS, Outcome.BLOCKED_ADDRESS)
    assert {url: end.outcome for url, end in zip(inside, redirected, strict=True)} == dict.fromkeys(inside, Outcome.BLOCKED_ADDRESS)


def _is_loopback(url: str) -> bool:
    try:
        check_url(URL(url), allow_loopback=True)
    except BlockedAddress:
        return False
    return True


def _fetch(urls: list[str], allow_loopback: bool) -> list[Fetched]:
    async def all_of_them() -> list[Fetched]:
        async with Fetcher(FetchConfig(timeout_s=10, attempts=1, allow_loopback=allow_loopback)) as fetcher:
            return await asyncio.gather(*map(fetcher.fetch, urls))

    return asyncio.run(all_of_them())


def test_the_last_check_is_on_the_address_that_is_connected_to() -> None:
    for address in ("10.0.0.1", "127.0.0.1", "::ffff:169.254.169.254"):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with pytest.raises(BlockedAddress):
            GuardedSocket(allow_loopback=False)((family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, 80)))
    GuardedSocket(allow_loopback=True)((socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", 80))).close()


def test_ports_beside_the_list_are_refused() -> None:
    check_url(URL("http://example.com/"), ports=(80, 443))
    check_url(URL("https://example.com/"), ports=(80, 443))
    for url in ("http://example.com:22/", "https://example.com:8443/", "http://example.com:0/"):
        with pytest.raises(BlockedAddress, match="port"):
            check_url(URL(url), ports=(80, 443))


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
