"""A hostile little web on loopback, and lists that point to it."""

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
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


class Web:
    """Answers by the first part of the path; `asked` counts requests by path, `user_agents` what callers say they are."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.user_agents: set[str] = set()
        self.connections = 0
        self.delay_s = 0.0
        self.down = False  # what /moody/ says is 503 then
        self.base = ""
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        self._ready.wait(10)

    def url(self, path: str) -> str:
        return f"{self.base}/{path}"

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._hang_up(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _hang_up(self) -> None:
        talks = asyncio.all_tasks() - {asyncio.current_task()}
        for talk in talks:
            talk.cancel()
        await asyncio.gather(*talks, return_exceptions=True)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._talk, "127.0.0.1", 0, backlog=512))
        self.base = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._ready.set()
        self._loop.run_forever()
        server.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                path = head.split(b" ")[1].decode().lstrip("/")
                self.asked[path] += 1
                self.user_agents.update(line.split(b": ")[1].decode() for line in head.split(b"\r\n") if line.lower().startswith(b"user-agent"))
                await asyncio.sleep(self.delay_s)
                await self._answer(path, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

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
            "loop": lambda: _response(b"", "302 Found", f"Location: /loop/{number + 1}\r\n"),
            "huge": lambda: _response(b"\xff" * 300_000),
            "announced": lambda: _response(b"", length=10**12),
            "noai": lambda: _response(picture, headers="X-Robots-Tag: max-image-preview: large, noai\r\n"),
            "garbage": lambda: b"this is not HTTP\r\n\r\n",
            "bomb": lambda: _response(make_png_header(30_000, 30_000)),
        }
        writer.write(answers[kind]())
        if kind in ("truncated", "garbage", "announced"):
            await writer.drain()
            writer.close()


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
    web = Web()
    yield web
    web.close()


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
