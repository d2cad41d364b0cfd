"""Conceptual Captions 3M as Google ships it: Train_GCC-training.tsv and Validation_GCC-1.1.0-Validation.tsv."""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from ingest.pair import Row
from ingest.sources.reading import lines
from ingest.sources.source import Source
from ingest.sources.tsv import tab_separated


class ConceptualCaptions3M(Source):
    """Lines of `caption<TAB>url`, without a header."""

    type: Literal["cc3m"] = Field(description="Conceptual Captions 3M: Train_GCC-training.tsv or Validation_GCC-1.1.0-Validation.tsv")

    def rows(self) -> Iterator[Row]:
        return tab_separated(enumerate(lines(self.path), start=1), fields=2, url=1, caption=0)
