"""Options of the lists whose columns the user names: csv, tsv, parquet, jsonl."""

from typing import Annotated

from pydantic import BeforeValidator, Field

from ingest.pair import TEXT_LIMIT
from ingest.sources.source import Source
from pipeline.core.errors import DataError


def _by_name(columns: object) -> object:
    return {str(column): column for column in columns} if isinstance(columns, list) else columns


Column = str | int
Columns = Annotated[dict[str, str], BeforeValidator(_by_name)]
ColumnsOrPositions = Annotated[dict[str, Column], BeforeValidator(_by_name)]
FURTHER = "further columns to keep, as `extra`: a list, or a mapping from the name they get to their name in the file"


class NamedColumns(Source):
    """Columns by name."""

    url: str = Field(default="url", description="column with the URL")
    caption: str = Field(default="caption", description="column with the caption or the list of captions")
    columns: Columns = Field(default={}, description=FURTHER)

    def wanted(self) -> dict[str, str]:
        """The columns to read, by the setting that asks for them."""
        return {"url": self.url, "caption": self.caption} | {f"columns.{name}": column for name, column in self.columns.items()}


class FieldColumns(Source):
    """Columns by name or by position in the line."""

    url: Column = Field(default="url", description="column with the URL: its name, or its position from 0")
    caption: Column = Field(default="caption", description="column with the caption: its name, or its position from 0")
    columns: ColumnsOrPositions = Field(default={}, description=f"{FURTHER} or their position from 0")
    header: bool = Field(default=True, description="the first row names the columns; without such a row: false, and give positions")

    def positions(self, first_row: list[str]) -> tuple[int, int, dict[str, int]]:
        """Where URL, caption and the further columns are in a row.

        Raises:
            DataError: one is not there.
        """
        further = {name: self._position(first_row, column, f"columns.{name}") for name, column in self.columns.items()}
        return self._position(first_row, self.url, "url"), self._position(first_row, self.caption, "caption"), further

    def _position(self, names: list[str], column: Column, key: str) -> int:
        if isinstance(column, int):
            if not 0 <= column < len(names):
                raise DataError(f"{self.path}: no column {column} (setting {key} of the source); its first row has columns 0 to {len(names) - 1}")
            return column
        if not self.header:
            raise DataError(f"{self.path}: header is false, so {key} must be a position from 0, not {column!r}")
        if column not in names:
            raise DataError(f"{self.path}: no column {column!r} (setting {key} of the source) in its first row: {', '.join(names)[:TEXT_LIMIT]}")
        return names.index(column)
