"""Tars that img2dataset or another tool wrote, such as mirrors of CC3M and CC12M: the pictures are there already."""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from ingest.archives import opened_tar
from ingest.pair import Member, RejectedRow, Row, row_of
from ingest.sources.source import Source
from pipeline.core.errors import DataError
from shards import layout, tar
from shards.foreign import tar_names


class WebDataset(Source):
    """A sample of the tars is a row, in the order of the tars' names; nothing is downloaded.

    The URL is that of the sample's json. A sample without one gets `archive://<name of the source>/<tar>/<key>`: the same wherever the tars lie.
    """

    type: Literal["webdataset"] = Field(description="folder of tars with <key>.jpg, .txt and .json, as img2dataset writes them")
    path: str = Field(description="the folder with the tars: a local path or an s3:// URL")
    columns: list[str] = Field(default=[], description="keys of the samples' json to keep, as `extra`")

    def list_files(self) -> list[str]:
        return []

    def archive_files(self) -> list[str]:
        return [layout.tar_path(self.path, name) for name in tar_names(self.path)]

    def rows(self) -> Iterator[Row]:
        number = 0
        for name in tar_names(self.path):
            path = layout.tar_path(self.path, name)
            with opened_tar(path) as data:
                for group in tar.groups(data, path):
                    number += 1
                    yield self._row(number, data, group, name)

    def _row(self, number: int, data: tar.Readable, group: tar.Group, name: str) -> Row:
        image = tar.image_member(group)
        if image is None:
            return RejectedRow(number, group.refused or "no_picture", f"{name}.tar: {group.key}")
        try:
            metadata = tar.metadata_of(data, group, f"{name}.tar")
        except DataError as error:
            return RejectedRow(number, "not_json", str(error))
        captions = tar.captions_of(data, group, metadata) or metadata.get("caption")
        url = metadata.get("url")
        if not isinstance(url, str) or not url.strip():
            url = f"archive://{self.label}/{name}/{group.key}"
        extra = {key: metadata[key] for key in self.columns if key in metadata}
        return row_of(number, url, captions, extra, Member(layout.tar_path(self.path, name), image.data, image.size))
