"""A line of a benchmark: ours beside the peer's, both measured in the same run."""

import json
import logging
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TypeVar

from scipy.stats import binom

from pipeline.app.figures import commit, machine
from pipeline.core import storage
from pipeline.core.errors import ConfigError

log = logging.getLogger(__name__)

ScaleT = TypeVar("ScaleT")


@dataclass(frozen=True)
class BenchRow:
    """`ratio` above 1 means that ours is better; `note` says what was measured, and how. Without a peer there is no ratio."""

    case: str
    unit: str
    ours: float
    peer: float | None
    peer_name: str | None
    ratio: float | None
    note: str

    def __str__(self) -> str:
        if self.peer is None:
            return f"{self.case}: {self.ours:g} {self.unit} ({self.note})"
        return f"{self.case}: {self.ours:g} {self.unit}, {self.peer_name} {self.peer:g}, ratio {self.ratio:g} ({self.note})"


def compared(case: str, unit: str, ours: Sequence[float], peer: Sequence[float], peer_name: str, note: str, more_is_better: bool = True) -> BenchRow:
    """Medians over the rounds, `ours[n]` and `peer[n]` measured one after the other; the ratio is the median of the rounds' ratios."""
    ratios = [one / other if more_is_better else other / one for one, other in zip(ours, peer, strict=True)]
    ends = f"; ratio of each round {', '.join(f'{ratio:.2f}' for ratio in ratios)}"
    return BenchRow(case, unit, _figure(statistics.median(ours)), _figure(statistics.median(peer)), peer_name, _figure(statistics.median(ratios)), note + ends)


def alone(case: str, unit: str, ours: Sequence[float], note: str) -> BenchRow:
    """The median over the rounds of what no peer has."""
    return BenchRow(case, unit, _figure(statistics.median(ours)), None, None, None, note)


def measure(cases: Sequence[str], table: Mapping[str, Callable[[ScaleT], list[BenchRow]]], scale: ScaleT) -> list[BenchRow]:
    """The rows of the cases, in their order.

    Raises:
        ConfigError: there is no such case.
    """
    if unknown := [case for case in cases if case not in table]:
        raise ConfigError(f"--cases {','.join(unknown)}: no such case; there are {', '.join(table)}")
    rows = []
    for case in cases:
        log.info("case %s", case)
        for row in table[case](scale):
            log.info("%s", row)
            rows.append(row)
    return rows


def write_rows(path: str, name: str, command: str, rows: Sequence[BenchRow]) -> None:
    """Write the file in the shape of docs/benchmarks."""
    record = {"name": name, "command": command, "commit": commit(), "machine": machine(), "rows": [asdict(row) for row in rows]}
    storage.write_bytes(path, (json.dumps(record, indent=1) + "\n").encode())


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """An interval that holds the median of whatever the values are drawn from in 95 of 100 cases or more; below six values, which are too few for that, all.

    Between the k-th lowest and the k-th highest: each value is below the median as a coin falls.
    """
    ordered = sorted(values)
    k = max(1, int(binom.ppf(0.025, len(ordered), 0.5)))
    return ordered[k - 1], ordered[-k]


def _figure(value: float) -> float:
    """Three digits: the fourth is chance."""
    return float(f"{value:.3g}")
