"""`albef bench ingest`: fetching, the pair table and the making of pictures beside what people use otherwise."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.app.bench import crawl, pairs, pictures
from pipeline.app.bench.row import BenchRow
from pipeline.core.errors import ConfigError

log = logging.getLogger(__name__)


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


CASES: dict[str, Callable[[Scale, Path], list[BenchRow]]] = {
    "http": lambda scale, work: crawl.http(work, scale.pictures, scale.rounds),
    "https": lambda scale, work: crawl.https(work, scale.pictures, scale.rounds),
    "https-one-authority": lambda scale, work: crawl.https_one_authority(work, scale.pictures, scale.rounds),
    "pairs-14m": lambda scale, work: pairs.compare(work / "pairs", scale.rows, scale.rounds),
    "pictures": lambda scale, _: [pictures.compare(rounds=scale.rounds)],
    "pictures-progressive": lambda scale, _: [pictures.compare(rounds=scale.rounds, progressive=True)],
}
