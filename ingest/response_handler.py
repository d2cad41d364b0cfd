"""aiohttp's end of a connection, with responses that end the same way in whatever packets they come."""

import re
from typing import Any

from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError

LENGTH = re.compile(rb"^content-length:[ \t]*(\d{1,18})[ \t]*\r$", re.IGNORECASE | re.MULTILINE)


class SteadyResponseHandler(ResponseHandler):
    """A body ends where its Content-Length says, and what is no HTTP after the head ends the body as a bad response.

    aiohttp alone loses the whole response when surplus bytes share a packet with its head, and does not notice them when they come later.
    An invalid chunk that comes after the head's packet leaves its reader waiting for ever.
    """

    def set_response_params(self, **params: Any) -> None:
        self._params = params
        self._payload_before = self._payload
        self._start = b""
        super().set_response_params(**params)

    def data_received(self, data: bytes) -> None:
        if self._payload is self._payload_before:
            self._start += data
        super().data_received(data)
        if self._payload is not self._payload_before:
            self._start = b""  # the head is through; it may have come with a quarter of a megabyte

    def set_exception(self, exc: BaseException, *cause: Any) -> None:
        start, self._start = self._start, b""
        end = _announced_end(start)
        if isinstance(exc, HttpProcessingError) and end is not None and end < len(start):
            super().set_response_params(**self._params)  # a fresh parser for what was announced
            super().data_received(start[:end])
            self.force_close()
            return
        if isinstance(exc, HttpProcessingError) and self._payload not in (None, self._payload_before) and not self._payload.is_eof():
            self._payload.set_exception(exc)
        super().set_exception(exc, *cause)


def _announced_end(response: bytes) -> int | None:
    """Where the response ends by its Content-Length, if its head is there and has one."""
    head, mark, _ = response.partition(b"\r\n\r\n")
    length = LENGTH.search(head + b"\r")
    return len(head) + len(mark) + int(length[1]) if mark and length else None
