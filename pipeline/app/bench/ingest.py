"""`albef bench ingest`: fetching, the pair table and the making of pictures beside what people use otherwise."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.app.bench import crawl, pairs, pictures
from pipeline.app.bench.row import BenchRow, measure

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scale:
    """Pictures fetched, rows of the generated lists, rounds of ours and the peer in turn, and where pictures stay for the next time."""

    pictures: int
    rows: int
    rounds: int
    work: Path


def run(cases: Sequence[str], scale: Scale) -> list[BenchRow]:
    return measure(cases, CASES, scale)


CASES: dict[str, Callable[[Scale], list[BenchRow]]] = {
    "http": lambda scale: crawl.http(scale.work, scale.pictures, scale.rounds),
    "https": lambda scale: crawl.https(scale.work, scale.pictures, scale.rounds),
    "https-one-authority": lambda scale: crawl.https_one_authority(scale.work, scale.pictures, scale.rounds),
    "pairs-14m": lambda scale: pairs.compare(scale.work / "pairs", scale.rows, scale.rounds),
    "pictures": lambda scale: pictures.compare(scale.work, scale.rounds),
}
