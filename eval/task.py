"""What every benchmark is: options as fields, a description of its data, and a call that scores a predictor."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from eval.chunks import Progress
from eval.predictor import Predictor


@dataclass(frozen=True)
class Scores:
    """What a benchmark found."""

    metrics: Mapping[str, float]
    counts: Mapping[str, int]  # items scored, each exactly once
    reference: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # rows to read the metrics against, by name
    gallery: Mapping[str, Any] | None = None  # queries with their best answers


class Task(Protocol):
    """A benchmark; its dataclass fields are its options in the configuration."""

    def data(self) -> dict[str, Any]:
        """What is evaluated, as JSON values that differ when the data do.

        Raises:
            DataError: the first thing wrong with the files.
        """

    def __call__(self, predictor: Predictor, progress: Progress) -> Scores:
        """Score every item once; whatever takes long goes through `progress`, so that a killed run continues."""
