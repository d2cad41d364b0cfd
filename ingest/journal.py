"""The journal of a shard being fetched: each finished row at once on disk, so that a killed worker asks no server twice.

A record is a header (magic, lengths, crc32), the row's facts as JSON and the picture's bytes. One write appends it; a record torn by
a crash fails its checksum and is cut off when the journal is opened again.
"""

import json
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

HEADER = struct.Struct("<4sIII")  # magic, bytes of JSON, bytes of picture, crc32 of both
MAGIC = b"ALJ1"


class Journal:
    """Rows by their number in the shard: facts in memory, pictures on disk."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.facts: dict[int, dict[str, Any]] = {}
        self._pictures: dict[int, tuple[int, int]] = {}  # offset and bytes
        self._end = 0
        self._file = path.open("a+b", buffering=0)
        for text, picture_bytes in self._records():
            facts = json.loads(text)
            self._add(facts.pop("row"), facts, len(text), picture_bytes)
        self._file.truncate(self._end)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def append(self, row: int, facts: dict[str, Any], picture: bytes) -> None:
        """Raises OSError when the disk is full."""
        text = json.dumps({"row": row, **facts}).encode()
        record = HEADER.pack(MAGIC, len(text), len(picture), zlib.crc32(picture, zlib.crc32(text))) + text + picture
        if self._file.write(record) != len(record):
            raise OSError(f"{self.path}: the disk took only part of a record; is it full?")
        self._add(row, facts, len(text), len(picture))

    def picture(self, row: int) -> bytes:
        offset, length = self._pictures[row]
        return os.pread(self._file.fileno(), length, offset)

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)

    def _add(self, row: int, facts: dict[str, Any], text_bytes: int, picture_bytes: int) -> None:
        start = self._end + HEADER.size + text_bytes
        self.facts[row], self._pictures[row] = facts, (start, picture_bytes)
        self._end = start + picture_bytes

    def _records(self) -> Iterator[tuple[bytes, int]]:
        with self.path.open("rb") as file:
            while len(header := file.read(HEADER.size)) == HEADER.size:
                magic, text_bytes, picture_bytes, checksum = HEADER.unpack(header)
                text, picture = file.read(text_bytes), file.read(picture_bytes)
                if magic != MAGIC or len(picture) != picture_bytes or zlib.crc32(picture, zlib.crc32(text)) != checksum:
                    return
                yield text, picture_bytes
