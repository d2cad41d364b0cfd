"""An HTTP server on loopback before another one, which fails a share of the requests as real stores do; no client is patched."""

import asyncio
import contextlib
import random
import re
import socket
import struct
from collections import Counter
from collections.abc import Sequence

from wire_proxy import LoopbackServer

FAULTS = ("status_500", "status_503", "reset", "truncated", "stalled")
RANGE_IGNORED = "range_ignored"  # one more: the whole object, as a proxy answers that does not know ranges
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
CLOSING = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)  # of the server behind; this one goes on
RANGE = re.compile(rb"\r\nrange: *bytes=[^\r]*", re.IGNORECASE)
EVERY = re.compile(rb"")  # request
RANGED = re.compile(rb"^GET [^\r]*\r\n(?s:.*)\r\nrange: *bytes=", re.IGNORECASE)


class FaultyFront(LoopbackServer):
    """Hands requests on to `target_port`; of those with a head like `at_risk`, a seeded choice of `share` meets the `faults` in turn, which `injected` counts.

    `reset` and `truncated` break off, and `stalled` falls silent, somewhere in the body of the answer, or in place of one that has none.
    """

    def __init__(self, target_port: int, share: float, seed: int, faults: Sequence[str] = FAULTS, at_risk: re.Pattern[bytes] = RANGED) -> None:
        super().__init__(target_port)
        self.share, self.faults, self.at_risk = share, faults, at_risk
        self.injected: Counter[str] = Counter()
        self.requests_at_risk = 0
        self._random, self._where = random.Random(seed), random.Random(seed)  # two, so that which request fails depends on its number alone

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                body = await reader.readexactly(_length(head))
                fault = self._fault(head)
                if fault is not None and fault.startswith("status_"):
                    code = fault.removeprefix("status_")
                    writer.write(f"HTTP/1.1 {code} Failed\r\nContent-Length: 0\r\n\r\n".encode())
                    await writer.drain()
                elif fault == RANGE_IGNORED:
                    await self._hand_on(RANGE.sub(b"", head) + body, writer, None)
                elif not await self._hand_on(head + body, writer, fault):
                    return

    def _fault(self, head: bytes) -> str | None:
        if not self.at_risk.match(head):
            return None
        self.requests_at_risk += 1
        if self._random.random() >= self.share:
            return None
        fault = self.faults[self.injected.total() % len(self.faults)]
        self.injected[fault] += 1
        return fault

    async def _hand_on(self, request: bytes, writer: asyncio.StreamWriter, fault: str | None) -> bool:
        """Whether the connection may serve another request."""
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self.target_port)
        try:
            there_writer.write(request)
            head = await there_reader.readuntil(b"\r\n\r\n")
            has_body = not request.startswith(b"HEAD ") and head.split(b" ", 2)[1] not in (b"204", b"304")
            body = await there_reader.readexactly(_length(head) if has_body else 0)
        finally:
            there_writer.transport.abort()
        if fault is None:
            writer.write(CLOSING.sub(b"", head) + body)
            await writer.drain()
            return True
        if body:
            writer.write(CLOSING.sub(b"", head) + body[: self._where.randrange(len(body))])
        await writer.drain()
        if fault == "truncated":
            writer.close()
            await writer.wait_closed()
        elif fault == "reset":
            await asyncio.sleep(0.05)  # else what was written is lost with the connection, and nothing was broken off
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closing then resets
        elif fault == "stalled":
            await asyncio.sleep(3600)
        return False


def _length(head: bytes) -> int:
    found = LENGTH.search(head)
    return int(found.group(1)) if found else 0
