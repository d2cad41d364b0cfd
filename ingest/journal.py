"""The journal of a shard being fetched: each finished row is kept, so that whoever goes on after a crash asks no server twice.

A record is a header (magic, lengths, crc32), the row's facts as JSON and the picture's bytes. Each holder of the shard's lease writes
files of its own and reads those of earlier ones, so that an orphan that still writes harms nobody.

On disk a holder has one file, to which a row is appended at once. An object store cannot append: there a scratch file on the
worker's disk holds everything, and every 64 rows the new part of it is written as an object.
"""

import contextlib
import json
import os
import struct
import tempfile
import threading
import uuid
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from pipeline.core import storage

HEADER = struct.Struct("<4sIII")  # magic, bytes of JSON, bytes of picture, crc32 of both
MAGIC = b"ALJ1"
ROWS_PER_OBJECT = 64  # what a kill may cost beside the rows in flight


class Journal:
    """Rows by their number in the shard: facts in memory, pictures in files."""

    def __init__(self, folder: str, generation: int, patience_s: float) -> None:
        self.folder, self.patience_s = folder, patience_s
        self.facts: dict[int, dict[str, Any]] = {}
        self.unsaved_rows = 0
        self._pictures: dict[int, tuple[int, int, int]] = {}  # number of the file, offset and bytes
        self._files: list[IO[bytes]] = []
        self._own = f"{generation:06d}-{uuid.uuid4().hex[:8]}"
        self._closing = contextlib.ExitStack()
        self._open(storage.list_files(folder))

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._closing.close()

    def append(self, row: int, facts: dict[str, Any], picture: bytes) -> None:
        """Keep a finished row; it is safe once `unsaved_rows` is 0.

        Raises OSError when the disk is full.
        """
        text = json.dumps({"row": row, **facts}).encode()
        record = HEADER.pack(MAGIC, len(text), len(picture), zlib.crc32(picture, zlib.crc32(text))) + text + picture
        start = self._files[-1].seek(0, os.SEEK_END)
        if self._files[-1].write(record) != len(record):
            raise OSError(f"{self.folder}: the disk took only part of a record; is it full?")
        self._add(row, facts, start + HEADER.size + len(text), len(picture))

    def save(self) -> None:
        """Make every appended row safe."""

    def picture(self, row: int) -> bytes:
        number, offset, length = self._pictures[row]
        return os.pread(self._files[number].fileno(), length, offset)

    def discard(self) -> None:
        storage.remove_tree(self.folder)

    def _open(self, names: list[str]) -> None:
        """Read what earlier holders wrote and begin an own file."""
        for name in names:
            self._files.append(self._closing.enter_context(Path(self.folder, name).open("rb", buffering=0)))  # noqa: SIM115
            self._read(self._files[-1])
        path = Path(self.folder, f"{self._own}.journal")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._files.append(self._closing.enter_context(path.open("x+b", buffering=0)))

    def _read(self, file: IO[bytes], start: int = 0) -> None:
        """Take in the records of the newest of `_files`."""
        for facts, offset, length in _records(file, start):
            self._add(facts.pop("row"), facts, offset, length)

    def _add(self, row: int, facts: dict[str, Any], offset: int, length: int) -> None:
        self.facts[row], self._pictures[row] = facts, (len(self._files) - 1, offset, length)


class ObjectStoreJournal(Journal):
    """The same on storage that cannot append."""

    def __init__(self, folder: str, generation: int, patience_s: float) -> None:
        self._saving = threading.Lock()
        self._saved = self._objects = 0  # bytes of the scratch file that are safe, and the objects of ours that hold them
        super().__init__(folder, generation, patience_s)

    def append(self, row: int, facts: dict[str, Any], picture: bytes) -> None:
        super().append(row, facts, picture)
        self.unsaved_rows += 1

    def save(self) -> None:
        """Raises StorageUnreachable when the store stays away."""
        with self._saving:  # a lane that is cancelled leaves its thread at it
            self._save()

    def _save(self) -> None:
        end = self._files[0].seek(0, os.SEEK_END)
        if end == self._saved:
            return
        data = os.pread(self._files[0].fileno(), end - self._saved, self._saved)
        path = storage.join(self.folder, f"{self._own}-{self._objects:06d}.journal")
        storage.patiently(lambda: storage.write_bytes(path, data), self.patience_s)
        self._saved, self._objects, self.unsaved_rows = end, self._objects + 1, 0

    def _open(self, names: list[str]) -> None:
        scratch: IO[bytes] = self._closing.enter_context(tempfile.TemporaryFile(buffering=0))  # noqa: SIM115
        self._files.append(scratch)
        for name in names:
            path = storage.join(self.folder, name)
            start = scratch.seek(0, os.SEEK_END)
            scratch.write(storage.patiently(partial(storage.read_bytes, path), self.patience_s))
            self._read(scratch, start)
        self._saved = scratch.seek(0, os.SEEK_END)


def open_journal(folder: str, generation: int, patience_s: float = 0.0) -> Journal:
    """The journal of one shard in `folder`, with the rows that earlier holders of its lease finished.

    `patience_s` says how many seconds to try again while an object store does not answer.
    """
    return Journal(folder.removeprefix("file://"), generation, patience_s) if storage.is_local(folder) else ObjectStoreJournal(folder, generation, patience_s)


def _records(file: IO[bytes], start: int) -> Iterator[tuple[dict[str, Any], int, int]]:
    """(facts with their row, offset and length of the picture) up to the end or to a record that a crash tore."""
    file.seek(start)
    while len(header := file.read(HEADER.size)) == HEADER.size:
        magic, text_bytes, picture_bytes, checksum = HEADER.unpack(header)
        text, picture = file.read(text_bytes), file.read(picture_bytes)
        if magic != MAGIC or len(picture) != picture_bytes or zlib.crc32(picture, zlib.crc32(text)) != checksum:
            return
        start += HEADER.size + text_bytes
        yield json.loads(text), start, picture_bytes
        start += picture_bytes
