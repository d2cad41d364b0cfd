"""What every benchmark is: options as fields, a description of its data, and a call that scores a predictor."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from eval.chunks import Progress
from eval.predictor import Predictor


class Outcomes(NamedTuple):
    """A metric item by item: their mean is the metric. Items of one picture are not independent, so each says whose it is."""

    values: NDArray[np.floating[Any]]  # [N], in the metric's unit
    picture: NDArray[np.integer[Any]]  # [N], a number for each picture of the benchmark


@dataclass(frozen=True)
class Scores:
    """What a benchmark found."""

    metrics: Mapping[str, float]
    counts: Mapping[str, int]  # items scored, each exactly once
    reference: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # rows to read the metrics against, by name
    gallery: Mapping[str, Any] | None = None  # queries with their best answers
    outcomes: Mapping[str, Outcomes] = field(default_factory=dict)  # of the metrics that intervals may be wanted for


class Task(Protocol):
    """A benchmark; its dataclass fields are its options in the configuration."""

    def data(self) -> dict[str, Any]:
        """What is evaluated, as JSON values that differ when the data do.

        Raises:
            DataError: the first thing wrong with the files.
        """

    def __call__(self, predictor: Predictor, progress: Progress) -> Scores:
        """Score every item once; whatever takes long goes through `progress`, so that a killed run continues."""
