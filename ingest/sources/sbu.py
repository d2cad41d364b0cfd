"""SBU Captioned Photos as its owners ship it: one JSON of parallel lists, or two text files that go line by line."""

from collections.abc import Iterator
from itertools import zip_longest
from typing import Any, Literal

from pydantic import Field, model_validator

from ingest.pair import NO_EXTRA, Row, row_of
from ingest.sources.reading import lines, list_at, load_json
from ingest.sources.source import Source
from pipeline.core.errors import DataError


class SbuCaptions(Source):
    """A million Flickr pictures with the titles their owners gave them."""

    type: Literal["sbu"] = Field(description="SBU: sbu-captions-all.json, or SBU_captioned_photo_dataset_urls.txt with its captions")
    path: str = Field(description="the JSON, or the text file with the URLs: a local path or an s3:// URL")
    captions: str | None = Field(default=None, description="the text file with the captions, when path is the one with the URLs")

    PLACES = Source.PLACES | {"captions"}

    @model_validator(mode="after")
    def _text_files_come_in_pairs(self) -> "SbuCaptions":
        if self.captions is None and self.path.removesuffix(".gz").endswith(".txt"):
            raise ValueError("path is a text file; name the one with the captions, too: captions")
        return self

    def rows(self) -> Iterator[Row]:
        return self._rows_of_json() if self.captions is None else self._rows_of_lines(self.captions)

    def list_files(self) -> list[str]:
        return [self.path] if self.captions is None else [self.path, self.captions]

    def _rows_of_json(self) -> Iterator[Row]:
        record = load_json(self.path)
        columns = {key: list_at(record, key, self.path) for key in ("image_urls", "captions", "user_ids") if key != "user_ids" or "user_ids" in record}
        if len({len(column) for column in columns.values()}) > 1:
            lengths = ", ".join(f"{key} {len(column)}" for key, column in columns.items())
            raise DataError(f"{self.path}: its lists have different lengths ({lengths}), so nobody knows what belongs together; download it again")
        users: list[Any] = columns.get("user_ids") or [None] * len(columns["image_urls"])
        for number, (url, caption, user) in enumerate(zip(columns["image_urls"], columns["captions"], users, strict=True), start=1):
            yield row_of(number, url, caption, NO_EXTRA if user is None else {"user_id": user})

    def _rows_of_lines(self, captions: str) -> Iterator[Row]:
        for number, (url, caption) in enumerate(zip_longest(lines(self.path), lines(captions)), start=1):
            if url is None or caption is None:
                short, long = (self.path, captions) if url is None else (captions, self.path)
                raise DataError(f"{short}: has {number - 1} lines, {long} has more, so nobody knows what belongs together; download both again")
            yield row_of(number, _text(url), _text(caption))


def _text(line: bytes) -> str:
    """UTF-8, or Latin-1 where a line is not: the text files have both."""
    line = line.rstrip(b"\r\n")
    try:
        return line.decode()
    except UnicodeDecodeError:
        return line.decode("latin-1")
