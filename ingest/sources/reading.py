"""Lists as bytes, lines and JSON: local or on S3, gzipped when their name ends in .gz."""

import contextlib
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from typing import IO, Any

from ingest.pair import TEXT_LIMIT
from pipeline.core import storage
from pipeline.core.errors import DataError

BUFFER_BYTES = 4 * 2**20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@contextlib.contextmanager
def open_list(path: str) -> Iterator[IO[bytes]]:
    """The list's bytes, unzipped.

    Raises:
        DataError: the file is missing, or its gzip is damaged (which may show only while reading).
    """
    with storage.open_read(path) as file, storage.errors_named(path):  # also what goes wrong in the middle of the list
        raw: Any = gzip.GzipFile(fileobj=file) if path.endswith(".gz") else file
        try:
            # buffered again: the lines of an s3fs or a gzip file are found in Python, which takes longer than all the rest
            with io.BufferedReader(raw, BUFFER_BYTES) as buffered:
                yield buffered
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DataError(f"{path}: damaged gzip ({error}); copy or download it again") from error


def lines(path: str) -> Iterator[bytes]:
    """The lines with their ends, without a byte order mark. Only a line feed ends a line."""
    with open_list(path) as file:
        if first := file.readline():
            yield first.removeprefix(BYTE_ORDER_MARK)
        yield from file


def shown(line: bytes) -> str:
    """What is kept of a line that was rejected."""
    return line[:TEXT_LIMIT].rstrip(b"\r\n").decode("utf-8", "replace")


def load_json(path: str) -> Any:
    """The whole file as one value.

    Raises:
        DataError: missing, or not JSON.
    """
    with open_list(path) as file:
        try:
            return json.loads(file.read())
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: not valid JSON ({str(error)[:80]}); download it again") from error


def list_at(record: Any, key: str, path: str) -> list[Any]:
    """`record[key]`, which has to be a list.

    Raises:
        DataError: it is not, naming file and key.
    """
    if not isinstance(record, dict) or key not in record:
        found = f"an object with {', '.join(record) or 'no key'}" if isinstance(record, dict) else f"a {type(record).__name__}"
        raise DataError(f"{path}: no key {key!r}; found {found[:TEXT_LIMIT]}")
    value = record[key]
    if not isinstance(value, list):
        raise DataError(f"{path}: {key!r} is a {type(value).__name__}; expected a list")
    return value
