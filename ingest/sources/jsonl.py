"""JSON-lines lists: one object a line with a URL and a caption or a list of captions."""

import json
from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from ingest.pair import RejectedRow, Row, row_of
from ingest.sources.listed import NamedColumns
from ingest.sources.reading import lines, shown


class Jsonl(NamedColumns):
    """A list of JSON objects, one a line; lines with nothing but white space are no rows."""

    type: Literal["jsonl"] = Field(description="list with one JSON object a line")

    def rows(self) -> Iterator[Row]:
        for number, line in enumerate(lines(self.path), start=1):
            if line.strip():
                yield self._row(number, line)

    def _row(self, number: int, line: bytes) -> Row:
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
            return RejectedRow(number, "not_json", shown(line))
        if not isinstance(values, dict):
            return RejectedRow(number, "not_an_object", shown(line))
        extra = {name: values[column] for name, column in self.columns.items() if column in values}
        return row_of(number, values.get(self.url), values.get(self.caption), extra)
