"""A hostile little web on loopback, and lists that point to it."""

import asyncio
import json
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile_web import Server
from PIL import Image

PICTURE_SIZE = (96, 64)


def jpeg_bytes(seed: int, size: tuple[int, int] = PICTURE_SIZE) -> bytes:
    """A smooth random picture."""
    import io

    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _response(body: bytes, status: str = "200 OK", headers: str = "", length: int | None = None) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body) if length is None else length}\r\n{headers}\r\n".encode() + body


class Web(Server):
    """Answers by the first part of the path; `asked` counts requests by path, `user_agents` what callers say they are."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.user_agents: set[str] = set()
        self.connections = 0
        self.delay_s = 0.0
        self.down = False  # what /moody/ says is 503 then

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        while head := await reader.readuntil(b"\r\n\r\n"):
            path = head.split(b" ")[1].decode().lstrip("/")
            self.asked[path] += 1
            self.user_agents.update(line.split(b": ")[1].decode() for line in head.split(b"\r\n") if line.lower().startswith(b"user-agent"))
            await asyncio.sleep(self.delay_s)
            await self._answer(path, writer)
            await writer.drain()

    async def _answer(self, path: str, writer: asyncio.StreamWriter) -> None:
        kind, _, rest = path.partition("?")[0].partition("/")
        number = int(rest) if rest.isdigit() else 0
        picture = jpeg_bytes(number) if kind in ("good", "truncated", "longer", "noai", "mirror", "moody") else b""
        if kind == "slow":  # never idle for long, never done
            writer.write(_response(b"", length=90_000))
            while True:
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.1)
        answers: dict[str, Callable[[], bytes]] = {
            "good": lambda: _response(picture),
            "moody": lambda: _response(b"", "503 Overloaded") if self.down else _response(picture),
            "mirror": lambda: _response(b"", "302 Found", f"Location: /good/{number}\r\n"),
            "truncated": lambda: _response(picture[: len(picture) // 2], length=len(picture)),
            "longer": lambda: _response(picture, length=len(picture) // 2),
            "html": lambda: _response(b"<html><body>moved</body></html>", headers="Content-Type: image/jpeg\r\n"),
            "empty": lambda: _response(b""),
            "status": lambda: _response(b"no", f"{rest} Because"),
            "private": lambda: _response(b"", "302 Found", "Location: http://10.0.0.1/secret.jpg\r\n"),
            "metadata": lambda: _response(b"", "301 Moved", "Location: http://169.254.169.254/latest/meta-data/\r\n"),
            "file": lambda: _response(b"", "302 Found", "Location: file:///etc/passwd\r\n"),
            "nowhere": lambda: _response(b"", "302 Found", "Location: http://a.com[]@\r\n"),
            "loop": lambda: _response(b"", "302 Found", f"Location: /loop/{number + 1}\r\n"),
            "huge": lambda: _response(b"\xff" * 300_000),
            "announced": lambda: _response(b"", length=10**12),
            "noai": lambda: _response(picture, headers="X-Robots-Tag: max-image-preview: large, noai\r\n"),
            "garbage": lambda: b"this is not HTTP\r\n\r\n",
            "bomb": lambda: _response(make_png_header(30_000, 30_000)),
        }
        writer.write(answers[kind]())
        if kind in ("truncated", "garbage", "announced"):
            writer.close()
            await writer.wait_closed()


def make_png_header(width: int, height: int) -> bytes:
    """A PNG that says it is huge and has nothing inside."""
    import struct
    import zlib

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.fixture
def png_header() -> Callable[[int, int], bytes]:
    return make_png_header


@pytest.fixture
def web() -> Iterator[Web]:
    with Web() as web:
        yield web


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


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)
