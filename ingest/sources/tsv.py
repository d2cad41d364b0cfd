"""Tab-separated lists as CC3M and CC12M ship them: a line is a row, a tab ends a field, and a quote is a character like any other."""

from collections.abc import Iterator

from ingest.config import SourceConfig
from ingest.pair import TEXT_LIMIT, RejectedRow, Row, row_of
from pipeline.core import storage
from pipeline.core.errors import DataError

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read(options: SourceConfig) -> Iterator[Row]:
    """The rows in the file's order; empty lines are no rows. The first row sets the number of fields every row must have.

    Raises:
        DataError: the file is missing, or has not the columns.
    """
    fields = None
    with storage.open_read(options.path) as file:
        for number, line in enumerate(file, start=1):
            text = line.rstrip(b"\r\n")
            if number == 1:
                text = text.removeprefix(BYTE_ORDER_MARK)
            if not text:
                continue
            if fields is None:
                fields = text.count(b"\t") + 1
                url, caption = _positions(text, options)
                if options.header:
                    continue
            yield _row(number, text, fields, url, caption)


def _positions(first_line: bytes, options: SourceConfig) -> tuple[int, int]:
    names = first_line.decode("utf-8", "replace").split("\t")
    return _position(names, options.url, "url", options), _position(names, options.caption, "caption", options)


def _position(names: list[str], column: str | int, key: str, options: SourceConfig) -> int:
    if isinstance(column, int):
        if not 0 <= column < len(names):
            raise DataError(f"{options.path}: no column {column} (setting {key} of the source); its first row has columns 0 to {len(names) - 1}")
        return column
    if not options.header:
        raise DataError(f"{options.path}: header is false, so {key} must be a position from 0, not {column!r}")
    if column not in names:
        raise DataError(f"{options.path}: no column {column!r} (setting {key} of the source) in its first row: {', '.join(names)[:TEXT_LIMIT]}")
    return names.index(column)


def _row(number: int, line: bytes, fields: int, url: int, caption: int) -> Row:
    try:
        values = line.decode("utf-8").split("\t")
    except UnicodeDecodeError:
        return RejectedRow(number, "not_utf8", line[:TEXT_LIMIT].decode("utf-8", "replace"))
    if len(values) != fields:
        return RejectedRow(number, "wrong_number_of_fields", line[:TEXT_LIMIT].decode("utf-8", "replace"))
    return row_of(number, values[url], values[caption])
