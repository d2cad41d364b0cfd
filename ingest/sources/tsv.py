"""Tab-separated lists: a line is a row, a tab ends a field, and a quote is a character like any other."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Literal

from pydantic import Field

from ingest.pair import NO_EXTRA, RejectedRow, Row, row_of
from ingest.sources.listed import FieldColumns
from ingest.sources.reading import lines, shown


class Tsv(FieldColumns):
    """A tab-separated list. The first row sets the number of fields every row must have; empty lines are no rows."""

    type: Literal["tsv"] = Field(description="tab-separated list without quoting")

    def rows(self) -> Iterator[Row]:
        numbered = ((number, line) for number, line in enumerate(lines(self.path), start=1) if line.strip(b"\r\n"))
        first = next(numbered, None)
        if first is None:
            return
        names = first[1].decode("utf-8", "replace").rstrip("\r\n").split("\t")
        url, caption, further = self.positions(names)
        yield from tab_separated(numbered if self.header else chain([first], numbered), len(names), url, caption, further)


def tab_separated(numbered: Iterable[tuple[int, bytes]], fields: int, url: int, caption: int, further: Mapping[str, int] = NO_EXTRA) -> Iterator[Row]:
    """The rows of numbered lines; `url`, `caption` and `further` are positions among the fields."""
    for number, line in numbered:
        try:
            values = line.decode().rstrip("\r\n").split("\t")
        except UnicodeDecodeError:
            yield RejectedRow(number, "not_utf8", shown(line))
            continue
        if len(values) == fields:
            yield row_of(number, values[url], values[caption], {name: values[at] for name, at in further.items()} if further else NO_EXTRA)
        elif values != [""]:
            yield RejectedRow(number, "wrong_number_of_fields", shown(line))
