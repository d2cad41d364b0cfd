"""What all sources of pairs have in common: their rows, what they are called, and what their rows depend on."""

import hashlib
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

from pydantic import Field

from ingest.pair import Row
from ingest.store import StoreConfig
from pipeline.core import storage
from pipeline.core.config import Section

HASH_BLOCK_BYTES = 2**20


class Source(Section):
    """A list of pictures with captions. Each source has a `type` of its own, by which the configuration names it."""

    type: str = Field(description="which kind of source")
    path: str = Field(description="the list: a local path or an s3:// URL")
    name: str | None = Field(default=None, description="what the samples of this source are called in the dataset; default: the file's name without its ending")
    store: StoreConfig | None = Field(default=None, description="how the pictures of this source are stored; stands on its own; default: ingest.store")
    paper_pictures: int | None = Field(default=None, ge=1, description="pictures the paper got from this source, for the report to set beside ours")
    paper_captions: int | None = Field(default=None, ge=1, description="captions the paper got from this source, for the report to set beside ours")

    PLACES: ClassVar[frozenset[str]] = frozenset({"path"})  # the settings that say where something lies

    @abstractmethod
    def rows(self) -> Iterator[Row]:
        """The rows in the file's order: each is a pair, or rejected with a reason.

        Raises:
            DataError: a file is missing, damaged or of another kind.
        """

    def list_files(self) -> list[str]:
        """The lists the rows are read from."""
        return [self.path]

    def archive_files(self) -> list[str]:
        """The archives that hold the pictures."""
        return []

    @property
    def label(self) -> str:
        return self.name or _base_name(self.path).split(".", 1)[0]

    def mark(self) -> dict[str, Any]:
        """What the rows depend on: the settings, the lists by content, the archives by name and size; where they lie changes nothing.

        Raises:
            DataError: one of the files is missing.
        """
        settings = self.model_dump(mode="json", exclude={*self.PLACES, "name", "paper_pictures", "paper_captions"})
        return {
            **settings,
            "name": self.label,
            "lists": [_sha256(path) for path in self.list_files()],
            "archives": [[_base_name(path), storage.size(path)] for path in self.archive_files()],
        }


def _base_name(path: str) -> str:
    return path.rstrip("/").rsplit("/", 1)[-1]


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with storage.open_read(path) as file:
        while block := file.read(HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
