"""Comma-separated lists with quoting as RFC 4180 has it."""

import csv
from collections import deque
from collections.abc import Iterator
from itertools import chain
from typing import Literal

from pydantic import Field

from ingest.pair import TEXT_LIMIT, RejectedRow, Row, row_of
from ingest.sources.listed import FieldColumns
from ingest.sources.reading import lines, shown
from pipeline.core.errors import DataError


class Csv(FieldColumns):
    """A comma-separated list. The first row sets the number of fields every row must have; empty lines are no rows."""

    type: Literal["csv"] = Field(description="comma-separated list; quotes enclose fields with commas, quotes or line feeds, as RFC 4180 says")

    def rows(self) -> Iterator[Row]:
        records = _records(_Lines(enumerate(lines(self.path), start=1)))
        first = next(records, None)
        if first is None:
            return
        if isinstance(first, RejectedRow):
            raise DataError(f"{self.path}: its first row cannot be read ({first.reason}): {first.text}")
        names = first[1]
        url, caption, further = self.positions(names)
        for record in records if self.header else chain([first], records):
            if isinstance(record, RejectedRow):
                yield record
                continue
            number, values = record
            if len(values) == len(names):
                yield row_of(number, values[url], values[caption], {name: values[at] for name, at in further.items()})
            else:
                yield RejectedRow(number, "wrong_number_of_fields", ",".join(values)[:TEXT_LIMIT])


_Record = tuple[int, list[str]] | RejectedRow


class _Lines:
    """The lines as text; those of the record in work can be given back."""

    def __init__(self, numbered: Iterator[tuple[int, bytes]]) -> None:
        self._numbered, self._ahead = numbered, deque[tuple[int, bytes]]()
        self.taken: list[tuple[int, bytes]] = []
        self.is_utf8 = True

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        number, line = self._ahead.popleft() if self._ahead else next(self._numbered)
        self.taken.append((number, line))
        try:
            return line.decode()
        except UnicodeDecodeError:
            self.is_utf8 = False
            return line.decode("utf-8", "replace")

    def next_record(self) -> None:
        self.taken, self.is_utf8 = [], True

    def give_back(self) -> tuple[int, bytes]:
        """All but the first, which is returned."""
        first, *others = self.taken
        self._ahead.extendleft(reversed(others))
        return first


def _records(source: _Lines) -> Iterator[_Record]:
    """Each record with the number of its first line.

    A line at which no record begins that RFC 4180 knows is rejected alone, and reading goes on at the next line: a quote that nobody closes would
    otherwise swallow what follows it.
    """
    reader = csv.reader(source, strict=True)
    while True:
        source.next_record()
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error:
            number, line = source.give_back()
            yield RejectedRow(number, "not_csv", shown(line))
            continue
        number, line = source.taken[0]
        if not source.is_utf8:
            yield RejectedRow(number, "not_utf8", shown(line))
        elif values:
            yield number, values
