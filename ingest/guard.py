"""Which addresses a crawler may connect to: public ones, so that a list cannot make it read what only this machine or network can see."""

import asyncio
import ipaddress
import socket
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor

from aiohttp import AddrInfoType
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Beyond what `is_global` already refuses; see the IANA special-purpose address registries.
REFUSED_NETWORKS = tuple(
    ipaddress.ip_network(network)
    for network in (
        "192.0.0.0/24",  # protocol assignments; 192.0.0.192 is Oracle's metadata service
        "168.63.129.16/32",  # Azure's metadata and DHCP service, a public address that only its guests reach
        "192.88.99.0/24",  # 6to4 relays
        "2001::/32",  # Teredo
        "2002::/16",  # 6to4
        "3fff::/20",  # documentation, newer than Python 3.11's table
    )
)
DNS_THREADS = 64  # a dead name server holds a thread for ten seconds and more
GLOBAL_UNICAST_V6 = ipaddress.ip_network("2000::/3")  # the only IPv6 block with public hosts


class BlockedAddress(Exception):
    """The URL leads to an address the crawler may not connect to."""


def refusal(address: str, allow_loopback: bool = False) -> str | None:
    """Why `address` (an IPv4 or IPv6 address in text) may not be connected to, or None."""
    try:
        ip: Address = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return f"{address} is no IP address"
    if isinstance(ip, ipaddress.IPv6Address) and (inner := _embedded(ip)) is not None:
        ip = inner
    if ip.is_loopback and allow_loopback:
        return None
    return None if _is_public(ip) else f"{address} is no public address"


def _is_public(ip: Address) -> bool:
    if ip.version == 6 and ip not in GLOBAL_UNICAST_V6:
        return False
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in REFUSED_NETWORKS)


def _embedded(ip: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that a mapped (::ffff:a.b.c.d) or compatible (::a.b.c.d) address stands for."""
    if ip.ipv4_mapped is not None:
        return ip.ipv4_mapped
    number = int(ip)
    return ipaddress.IPv4Address(number) if 1 < number < 2**32 else None


def check_url(url: URL, allow_loopback: bool = False, ports: Collection[int] = ()) -> None:
    """Check the scheme, the port (empty `ports`: any) and, when the host is an address, the address; names are checked when they are resolved.

    Raises:
        ValueError: it is no http or https URL with a host.
        BlockedAddress: its host is an address that is refused, or its port is.
    """
    if url.scheme not in ("http", "https") or not url.raw_host:
        raise ValueError(f"not an http or https URL: {str(url)[:200]}")
    if ports and url.port not in ports:
        raise BlockedAddress(f"port {url.port} is not one of {', '.join(map(str, ports))}")
    if not _is_address(url.raw_host):
        return
    if reason := refusal(url.raw_host, allow_loopback):
        raise BlockedAddress(reason)


def _is_address(host: str) -> bool:
    """Whether the host is an address, or a number that getaddrinfo would read as one (2130706433, 0x7f.1, 127.1)."""
    last_label = host.rstrip(".").rpartition(".")[2].lower()
    return ":" in host or last_label.isdigit() or last_label.startswith("0x")


class GuardedResolver(AbstractResolver):
    """Resolves a name once and hands on only addresses that are allowed; the connector connects to exactly these (no second look-up to rebind)."""

    def __init__(self, allow_loopback: bool = False) -> None:
        self.allow_loopback = allow_loopback
        # Its own threads, not the loop's: the end of asyncio.run would wait for look-ups that nobody wants any more.
        self._threads = ThreadPoolExecutor(DNS_THREADS, thread_name_prefix="dns")

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC) -> list[ResolveResult]:
        """Raises BlockedAddress when the name leads to a refused address, OSError when it leads nowhere."""
        look_up = asyncio.get_running_loop().run_in_executor
        found = await look_up(self._threads, socket.getaddrinfo, host, port, family, socket.SOCK_STREAM, 0, socket.AI_ADDRCONFIG)
        results: list[ResolveResult] = []
        for address_family, _, protocol, _, sockaddr in found:
            address = str(sockaddr[0])
            if reason := refusal(address, self.allow_loopback):
                raise BlockedAddress(f"{host}: {reason}")  # a name with one private address among public ones is an attack, not a mistake
            flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
            results.append(ResolveResult(hostname=host, host=address, port=port, family=address_family, proto=protocol, flags=flags))
        return results

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


class GuardedSocket:
    """Makes the connector's sockets; the last check, on the very address that is connected to, whatever parsed the URL before."""

    def __init__(self, allow_loopback: bool) -> None:
        self.allow_loopback = allow_loopback

    def __call__(self, info: AddrInfoType) -> socket.socket:
        family, kind, protocol, _, sockaddr = info
        if reason := refusal(str(sockaddr[0]), self.allow_loopback):
            raise BlockedAddress(reason)
        return socket.socket(family, kind, protocol)
