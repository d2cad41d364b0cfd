"""Servers on loopback that answer as a test says, byte by byte: whole, late, endless, wrong; and a small proxy."""

import asyncio
import contextlib
import itertools
import ssl
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
UNTIL_CLOSED = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


def response(body: bytes = b"", status: str = "200 OK", *headers: str, length: int | None = None) -> bytes:
    """One HTTP/1.1 response; `length` when Content-Length is to lie."""
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", *headers]
    return "".join(f"{line}\r\n" for line in head).encode() + b"\r\n" + body


def says(*answers: bytes) -> Answer:
    """The answers in turn, the last one for ever."""
    turn = itertools.chain(answers[:-1], itertools.repeat(answers[-1]))

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(next(turn))
        await writer.drain()

    return answer


def then_closes(*parts: bytes, pause_s: float = 0.0) -> Answer:
    """The parts as packets of their own, then the end of the connection."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause_s)
        writer.close()

    return answer


def repeats(start: bytes, part: bytes, times: int | None = None, every_s: float = 0.0) -> Answer:
    """`start`, then `part` again and again (for ever without `times`), then the end of the connection."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(start)
        for _ in itertools.count() if times is None else range(times):
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(every_s)
        writer.close()

    return answer


def chunked(*chunks: bytes) -> bytes:
    """A whole chunked body, head included."""
    return CHUNKED + b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"


async def never(writer: asyncio.StreamWriter) -> None:
    """Accepts, and says nothing."""
    await asyncio.sleep(3600)


def zeros_png(width: int, height: int, bits: int = 8, colour: int = 2, rows_at_once: int = 100) -> bytes:
    """A whole and valid black PNG of any size, in milliseconds: one compressed block of rows, repeated."""
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    row = bytes(1 + (width * channels * bits + 7) // 8)
    blocks, rest = divmod(height, rows_at_once)
    compressor = zlib.compressobj(9)
    start = compressor.compress(b"") + compressor.flush(zlib.Z_FULL_FLUSH)
    block = compressor.compress(row * rows_at_once) + compressor.flush(zlib.Z_FULL_FLUSH)
    end = compressor.compress(row * rest) + compressor.flush()
    adler = ((len(row) * height) % 65521) << 16 | 1  # Adler-32 of so many zeros
    pixels = start + block * blocks + end[:-4] + struct.pack(">I", adler)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


class Server:
    """One port on loopback, served by a thread until the block is left."""

    scheme = "http"
    address = "127.0.0.1"
    tls: ssl.SSLContext | None = None

    def __enter__(self) -> Self:
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        asyncio.run_coroutine_threadsafe(self._hang_up(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def url(self, path: str = "", host: str | None = None) -> str:
        return f"{self.scheme}://{host or self.address}:{self.port}/{path}"

    async def _hang_up(self) -> None:
        talks = asyncio.all_tasks() - {asyncio.current_task()}
        for talk in talks:
            talk.cancel()
        await asyncio.gather(*talks, return_exceptions=True)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._guarded_talk, self.address, 0, ssl=self.tls, backlog=512, limit=2**20))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()

    async def _guarded_talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self.talk(reader, writer)
        except (asyncio.IncompleteReadError, asyncio.CancelledError, OSError):  # a cancelled one is being hung up
            pass
        finally:
            writer.transport.abort()

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise NotImplementedError


class Site(Server):
    """Pages by path; an unknown path is a 404. `asked` has the time and the path of each request, `heads` all that the client said."""

    def __init__(self, pages: dict[str, Answer], tls: ssl.SSLContext | None = None, address: str = "127.0.0.1") -> None:
        self.pages, self.tls, self.address = pages, tls, address  # a further address in 127.0.0.0/8 is a host of its own
        self.scheme = "http" if tls is None else "https"
        self.asked: list[tuple[float, str]] = []
        self.heads: list[str] = []
        self.connections = 0

    def count(self, path: str | None = None) -> int:
        return len(self.asked) if path is None else Counter(asked for _, asked in self.asked)[path]

    def times(self, path: str) -> list[float]:
        return [moment for moment, asked in self.asked if asked == path]

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        while not writer.is_closing():
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            path = head.split(" ")[1].lstrip("/")
            self.asked.append((time.monotonic(), path))
            self.heads.append(head)
            await self.pages.get(path, says(response(b"", "404 Not Found")))(writer)


class Mute(Server):
    """Accepts connections and never reads or writes: a TLS handshake that does not begin."""

    scheme = "https"

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(3600)


class Proxy(Server):
    """Forwards requests with an absolute URL, and tunnels CONNECT; whatever host it is asked for is on loopback. `asked` has the first lines."""

    def __init__(self, answer: bytes | None = None) -> None:
        self.answer = answer
        self.asked: list[str] = []

    def __enter__(self) -> "Proxy":
        super().__enter__()
        return self

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        method, target, _ = head.split(b"\r\n")[0].decode().split(" ")
        self.asked.append(f"{method} {target}")
        if self.answer is not None:
            writer.write(self.answer)
            await writer.drain()
            return
        authority = target if method == "CONNECT" else target.split("/")[2]
        upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", int(authority.rpartition(":")[2]))
        if method == "CONNECT":
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        else:
            upstream_writer.write(head.replace(target.encode(), b"/" + target.split("/", 3)[3].encode(), 1))
        try:
            await asyncio.wait([asyncio.create_task(_pump(reader, upstream_writer)), asyncio.create_task(_pump(upstream_reader, writer))])
        finally:
            upstream_writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while piece := await reader.read(2**16):
            writer.write(piece)
            await writer.drain()
        writer.close()
