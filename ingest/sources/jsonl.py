"""JSON-lines lists: one object a line with a URL and a caption or a list of captions."""

import json
from collections.abc import Iterator

from ingest.config import SourceConfig
from ingest.pair import TEXT_LIMIT, RejectedRow, Row, row_of
from pipeline.core import storage


def read(options: SourceConfig) -> Iterator[Row]:
    """The rows in the file's order; lines with nothing but white space are no rows.

    Raises:
        DataError: the file is missing.
    """
    with storage.open_read(options.path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _row(number, line, options)


def _row(number: int, line: bytes, options: SourceConfig) -> Row:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        return RejectedRow(number, "not_json", line[:TEXT_LIMIT].decode("utf-8", "replace"))
    if not isinstance(values, dict):
        return RejectedRow(number, "not_an_object", line[:TEXT_LIMIT].decode("utf-8", "replace"))
    return row_of(number, values.get(str(options.url)), values.get(str(options.caption)))
