"""Where the rows of the lists went, in all and list by list."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.core.errors import AlbefError


@dataclass
class SourceCounts:
    """One list's rows: `rows` = `pictures` + `merged` + the sum of `rejected`. Lists of the same name are counted together."""

    rows: int = 0
    pictures: int = 0  # that it was the first to name
    merged: int = 0  # into a picture that an earlier row named
    captions: int = 0  # of the table, that it was the first to give
    rejected: dict[str, int] = field(default_factory=dict)
    dropped_captions: dict[str, int] = field(default_factory=dict)  # of rows that keep others

    def check(self, what: str) -> None:
        """Raises AlbefError when a row was lost or counted twice."""
        accounted = self.pictures + self.merged + sum(self.rejected.values())
        if accounted != self.rows:
            raise AlbefError(f"{what}: {self.rows} rows came in, {accounted} are accounted for: {asdict(self)}")


@dataclass
class RowCounts(SourceCounts):
    """All lists together; `overlap[a][b]` rows of list b were merged into pictures that list a named first."""

    sources: dict[str, SourceCounts] = field(default_factory=dict)
    overlap: dict[str, dict[str, int]] = field(default_factory=dict)

    @classmethod
    def of_sources(cls, labels: Sequence[str], counts: Sequence[SourceCounts], overlap: Mapping[tuple[int, int], int]) -> "RowCounts":
        """`overlap` counts merged rows by the positions of the two lists."""
        whole = cls(sources={label: SourceCounts() for label in labels}, overlap={label: {} for label in labels})
        for label, one in zip(labels, counts, strict=True):
            _add(whole, one)
            _add(whole.sources[label], one)
        for (first, later), rows in sorted(overlap.items()):
            row = whole.overlap[labels[first]]
            row[labels[later]] = row.get(labels[later], 0) + rows
        return whole

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "RowCounts":
        return cls(**values | {"sources": {label: SourceCounts(**one) for label, one in values["sources"].items()}})

    def check(self, what: str = "pair table") -> None:
        """Raises AlbefError when a row was lost or counted twice, in all or in one of the lists."""
        super().check(what)
        for label, one in self.sources.items():
            one.check(f"{what}, list {label!r}")
        overlap = sum(sum(row.values()) for row in self.overlap.values())
        if overlap != self.merged:
            raise AlbefError(f"{what}: {self.merged} rows were merged, the overlaps of the lists add up to {overlap}")


def _add(total: SourceCounts, one: SourceCounts) -> None:
    total.rows += one.rows
    total.pictures += one.pictures
    total.merged += one.merged
    total.captions += one.captions
    for whole, part in ((total.rejected, one.rejected), (total.dropped_captions, one.dropped_captions)):
        for reason, rows in part.items():
            whole[reason] = whole.get(reason, 0) + rows
