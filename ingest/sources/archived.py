"""What the sources have in common whose pictures the user can have in archives."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from ingest.archives import Archives
from ingest.pair import RejectedRow, Row, row_of
from ingest.sources.source import Source


class Archived(Source):
    """Pictures come out of `archives` when there are any, else from the web."""

    archives: list[str] = Field(default=[], description="zips, or tars not compressed as a whole, that hold the pictures, local or s3://; none: from the web")

    PLACES = Source.PLACES | {"archives"}

    def archive_files(self) -> list[str]:
        return self.archives

    def opened(self) -> Archives | None:
        """What the archives hold; None when there are none."""
        return Archives(self.archives) if self.archives else None

    def made_up_url(self, path: str) -> str:
        """For a picture that has none: the same wherever the archives lie."""
        return f"archive://{self.label}/{path}"


def placed(archives: Archives | None, number: int, path: str, url: object, captions: object, extra: Mapping[str, Any]) -> Row:
    """The row of a picture that has the name `path` in the archives."""
    if archives is None:
        return row_of(number, url, captions, extra)
    member = archives.find(path)
    return RejectedRow(number, member, path) if isinstance(member, str) else row_of(number, url, captions, extra, member)
