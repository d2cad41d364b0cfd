"""`albef bench ingest`: fetching, the pair table and the making of pictures beside what people use otherwise."""

import logging
import multiprocessing
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pipeline.app.bench import crawl, pairs
from pipeline.app.bench.row import BenchRow, compared
from pipeline.core.errors import ConfigError

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Scale:
    """How much of everything: pictures fetched, rows of the generated lists, rounds of ours and the peer in turn."""

    pictures: int
    rows: int
    rounds: int


def run(cases: Sequence[str], scale: Scale, work: Path) -> list[BenchRow]:
    """The rows of the cases, in their order; `work` keeps the pictures for the next time.

    Raises:
        ConfigError: there is no such case.
    """
    if unknown := [case for case in cases if case not in CASES]:
        raise ConfigError(f"--cases {','.join(unknown)}: no such case; there are {', '.join(CASES)}")
    rows = []
    for case in cases:
        log.info("case %s", case)
        for row in CASES[case](scale, work):
            log.info("%s", row)
            rows.append(row)
    return rows


def _pair_table(scale: Scale, work: Path) -> list[BenchRow]:
    lists = pairs.generate(work / "lists", scale.rows)
    ours, peer = [], []
    for number in range(1, scale.rounds + 1):
        counts, usage = _in_a_process_of_its_own(pairs.pair_table_of, lists, work / "pairs")
        kept, peer_usage = _in_a_process_of_its_own(pairs.pandas_of, lists, work / "pairs")
        ours.append(usage)
        peer.append(peer_usage)
        log.info("pairs-14m: round %d of %d: albef %s, pandas %s", number, scale.rounds, usage, peer_usage)
    shutil.rmtree(work / "lists")
    walls = f"{max(usage.wall_s for usage in ours):.0f} s at most for ours, {max(usage.wall_s for usage in peer):.0f} s for pandas"
    note = (
        f"{lists.rows} rows in {lists.bytes / 1e9:.1f} GB of lists; ours finds {counts.pictures} pictures, with normalised URLs, filters and merged captions; "
        f"pandas, all in memory, drops rows whose URL is spelled alike and keeps {kept}; wall time {walls}"
    )
    ours_gb, peer_gb = ([usage.peak_rss_bytes / 1e9 for usage in side] for side in (ours, peer))
    return [
        compared("pairs-14m", "rows/CPU-s", [lists.rows / usage.cpu_s for usage in ours], [lists.rows / usage.cpu_s for usage in peer], "pandas", note),
        compared("pairs-14m memory", "GB", ours_gb, peer_gb, "pandas", "largest resident memory of the process", more_is_better=False),
    ]


def _in_a_process_of_its_own(way: Callable[[pairs.Lists, Path], T], lists: pairs.Lists, folder: Path) -> T:
    """Memory that one of the two gave back to the allocator but not to the system must not count for the other."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(way, lists, folder).result()


CASES: dict[str, Callable[[Scale, Path], list[BenchRow]]] = {
    "http": lambda scale, work: crawl.http(work, scale.pictures, scale.rounds),
    "https": lambda scale, work: crawl.https(work, scale.pictures, scale.rounds),
    "pairs-14m": _pair_table,
}
