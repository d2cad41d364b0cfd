"""A body ends where its Content-Length says, whatever comes after and in whatever packets."""

import re
from typing import Any

from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError

LENGTH = re.compile(rb"^content-length:[ \t]*(\d{1,18})[ \t]*\r$", re.IGNORECASE | re.MULTILINE)


class AnnouncedLengthHandler(ResponseHandler):
    """aiohttp's connection, which alone would lose the response when surplus bytes share a packet with its head, and not notice them when they come later."""

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
        if not isinstance(exc, HttpProcessingError) or end is None or end >= len(start):
            super().set_exception(exc, *cause)
            return
        super().set_response_params(**self._params)  # a fresh parser for what was announced
        super().data_received(start[:end])
        self.force_close()


def _announced_end(response: bytes) -> int | None:
    """Where the response ends by its Content-Length, if its head is there and has one."""
    head, mark, _ = response.partition(b"\r\n\r\n")
    length = LENGTH.search(head + b"\r")
    return len(head) + len(mark) + int(length[1]) if mark and length else None
