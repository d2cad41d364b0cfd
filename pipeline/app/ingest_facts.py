"""What the outcome tables of a dataset say, added up shard by shard: outcomes by source, hosts, sizes, captions, latencies, bytes.

Outcomes by source are exact. The rest is read from as many shards, spread evenly, as give a million rows; the order of the shards is that of the
lists, so every list has its share.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from ingest import published
from ingest.outcomes import Outcome
from shards.manifest import Manifest

SAMPLE_ROWS = 1_000_000
EXACT = ["source", "outcome"]
SAMPLED = ["url", "archive", "bytes", "latency_s", "attempts", "width", "height", "original_width", "original_height", "caption_words"]
SIDE_EDGES = np.arange(0, 2081, 32)  # pixels; longer sides count in the last
WORD_EDGES = np.arange(0.5, 61.5)
CAPTION_EDGES = np.arange(0.5, 21.5)
LATENCY_EDGES = np.geomspace(0.001, 60, 61)  # seconds
BYTE_EDGES = np.geomspace(100, 25e6, 61)


@dataclass
class Histogram:
    """Counts between edges; what lies outside counts in the first or last."""

    edges: np.ndarray
    counts: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.counts = np.zeros(len(self.edges) - 1, np.int64)

    def add(self, values: np.ndarray) -> None:
        self.counts += np.histogram(np.clip(values, self.edges[0], self.edges[-1]), self.edges)[0]

    @property
    def total(self) -> int:
        return int(self.counts.sum())

    def quantile(self, share: float) -> float:
        """Right to one step between edges."""
        position = int(np.searchsorted(np.cumsum(self.counts), share * self.total))
        return float(self.edges[min(position + 1, len(self.edges) - 1)])


@dataclass
class Facts:
    """`hosts` counts the pictures asked of each, `hosts_success` those it gave; short sides are of the pictures as they came and as they are stored."""

    shards: int = 0
    rows: int = 0
    shards_sampled: int = 0
    rows_sampled: int = 0
    by_source: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    hosts: Counter[str] = field(default_factory=Counter)
    hosts_success: Counter[str] = field(default_factory=Counter)
    stored_side: Histogram = field(default_factory=lambda: Histogram(SIDE_EDGES))
    original_side: Histogram = field(default_factory=lambda: Histogram(SIDE_EDGES))
    caption_words: Histogram = field(default_factory=lambda: Histogram(WORD_EDGES))
    captions_per_picture: Histogram = field(default_factory=lambda: Histogram(CAPTION_EDGES))
    latency_s: Histogram = field(default_factory=lambda: Histogram(LATENCY_EDGES))
    body_bytes: Histogram = field(default_factory=lambda: Histogram(BYTE_EDGES))
    bytes: int = 0  # of the bodies in the sampled shards
    requests: int = 0  # there too

    @property
    def sampled(self) -> bool:
        return self.rows_sampled < self.rows


def facts_of(output: str, dataset: Manifest, sample_rows: int = SAMPLE_ROWS) -> Facts:
    """Read the outcome tables of the dataset folder that its manifest counts, one at a time."""
    facts = Facts()
    rounds: list[dict[str, Any]] = dataset.config.get("rounds", [])
    names = _counted(published.names(output), dataset, rounds)
    step = max(1, -(-sum(dataset.outcomes.values()) // sample_rows))
    for number, name in enumerate(names):
        sampled = number % step == 0
        table = _without(published.rows(output, name, EXACT + SAMPLED if sampled else EXACT), _tried_again(name, rounds))
        facts.shards += 1
        facts.rows += table.num_rows
        _count_outcomes(facts, table)
        if sampled:
            facts.shards_sampled += 1
            facts.rows_sampled += table.num_rows
            _sample(facts, table)
    return facts


def _counted(names: list[str], dataset: Manifest, rounds: list[dict[str, Any]]) -> list[str]:
    """A round of retries that is not finished has tables that no manifest counts yet."""
    first_round = -(-dataset.config["rows"]["pictures"] // dataset.config["ingest"]["samples_per_shard"])
    stop = rounds[-1]["shards"][1] if rounds else first_round
    return [name for name in names if name.isdigit() and int(name) < stop]


def _tried_again(name: str, rounds: list[dict[str, Any]]) -> list[str]:
    """The outcomes of a shard's rows that a later round took up: there these rows have their newest outcome."""
    return next((list(later["retried"]) for later in rounds if later["shards"][0] > int(name)), [])


def _without(table: Any, outcomes: list[str]) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    return table.filter(pc.invert(pc.is_in(table["outcome"], pa.array(outcomes, pa.string())))) if outcomes else table


def _count_outcomes(facts: Facts, table: Any) -> None:
    for group in table.group_by(EXACT).aggregate([([], "count_all")]).to_pylist():
        facts.by_source[group["source"]][group["outcome"]] += group["count_all"]


def _sample(facts: Facts, table: Any) -> None:
    import pyarrow.compute as pc

    stored = table.filter(pc.equal(table["outcome"], Outcome.SUCCESS.value))
    asked = table.filter(pc.and_(pc.greater(table["attempts"], 0), pc.is_null(table["archive"])))
    for url, good in zip(asked["url"].to_pylist(), pc.equal(asked["outcome"], Outcome.SUCCESS.value).to_pylist(), strict=True):
        host = _host(url)
        facts.hosts[host] += 1
        facts.hosts_success[host] += good
    facts.bytes += pc.sum(table["bytes"]).as_py() or 0
    facts.latency_s.add(_numbers(asked, "latency_s"))
    facts.body_bytes.add(_numbers(stored, "bytes"))
    facts.requests += pc.sum(asked["attempts"]).as_py() or 0
    facts.stored_side.add(np.minimum(_numbers(stored, "width"), _numbers(stored, "height")))
    facts.original_side.add(np.minimum(_numbers(stored, "original_width"), _numbers(stored, "original_height")))
    words = stored["caption_words"].drop_null()
    facts.caption_words.add(pc.list_flatten(words).to_numpy())
    facts.captions_per_picture.add(pc.list_value_length(words).to_numpy())


def _numbers(table: Any, column: str) -> np.ndarray:
    """Without nulls, which stand for what was never known: the latency of a row that was not asked for, a column of a newer version."""
    numbers: np.ndarray = table[column].drop_null().to_numpy()
    return numbers


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or "none"
    except ValueError:
        return "none"
