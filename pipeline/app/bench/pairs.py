"""The benchmark `pairs-14m`: lists with as many rows as CC12M, CC3M and SBU together, read, normalised, freed of duplicates and written as a pair table.

The rows are generated, the files are real: a `url<TAB>caption` TSV, a `caption<TAB>url` TSV and an SBU JSON of parallel lists. One row in twenty
repeats an earlier picture of any of the files, half of these in another spelling of its URL.
"""

import json
import logging
import multiprocessing
import random
import shutil
import statistics
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from ingest import pair_table
from ingest.config import FilterConfig
from ingest.row_counts import RowCounts
from ingest.sources.cc3m import ConceptualCaptions3M
from ingest.sources.cc12m import Conceptual12M
from ingest.sources.sbu import SbuCaptions
from pipeline.app.bench.row import BenchRow, compared
from pipeline.app.bench.usage import Usage, measured

log = logging.getLogger(__name__)

SAMPLES_PER_SHARD = 10_000
SHARES = {"cc12m": 10 / 14, "cc3m": 3 / 14, "sbu": 1 / 14}
REPEATED = 0.05  # of the rows
BLOCK_ROWS = 1000
MASK = 2**64 - 1
T = TypeVar("T")


@dataclass(frozen=True)
class Lists:
    """The generated files and what they hold."""

    cc12m: Path
    cc3m: Path
    sbu: Path
    rows: int
    repeated: int

    @property
    def bytes(self) -> int:
        return sum(path.stat().st_size for path in (self.cc12m, self.cc3m, self.sbu))


def compare(folder: Path, rows: int = 14_000_000, rounds: int = 3) -> list[BenchRow]:
    """Generate the lists under `folder`, go through them in ours and in pandas' way in turn, each in a fresh process, and remove everything."""
    try:
        lists = generate(folder / "lists", rows)
        ours, peer = [], []
        for number in range(1, rounds + 1):
            counts, usage = _in_a_fresh_process(pair_table_of, lists, folder / "table")
            kept, peer_usage = _in_a_fresh_process(pandas_of, lists, folder / "table")
            ours.append(usage)
            peer.append(peer_usage)
            log.info("pairs-14m: round %d of %d: albef %s, pandas %s", number, rounds, usage, peer_usage)
        gigabytes = lists.bytes / 1e9
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    note = (
        f"{lists.rows} rows, {gigabytes:.1f} GB; ours, out of core, finds {counts.pictures} pictures by normalised URL, filters, and keeps all their captions; "
        f"pandas, in memory, keeps {kept} and drops the other rows; wall time {_median_wall_s(ours):.0f} s, pandas {_median_wall_s(peer):.0f} s"
    )
    memory = [[usage.peak_rss_bytes / 1e9 for usage in side] for side in (ours, peer)]
    return [
        compared("pairs-14m", "rows/CPU-s", [lists.rows / usage.cpu_s for usage in ours], [lists.rows / usage.cpu_s for usage in peer], "pandas", note),
        compared("pairs-14m memory", "GB", memory[0], memory[1], "pandas", "largest resident memory at one moment", more_is_better=False),
    ]


def _median_wall_s(side: Sequence[Usage]) -> float:
    return statistics.median(usage.wall_s for usage in side)


def _in_a_fresh_process(measure: Callable[[Lists, Path], tuple[T, Usage]], lists: Lists, folder: Path) -> tuple[T, Usage]:
    """What one way leaves in memory is then not counted with the other."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, lists, folder).result()


def generate(folder: Path, rows: int, seed: int = 0) -> Lists:
    """Write the three files; the same arguments give the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = {name: round(rows * share) for name, share in SHARES.items()}
    generator = _Generator(seed)
    lists = {name: folder / f"{name}.{'json' if name == 'sbu' else 'tsv'}" for name in SHARES}
    _write_lines(lists["cc12m"], (f"{url}\t{caption}\n" for url, caption in generator.pairs(numbers["cc12m"])))
    _write_lines(lists["cc3m"], (f"{caption}\t{url}\n" for url, caption in generator.pairs(numbers["cc3m"])))
    _write_sbu(lists["sbu"], list(generator.pairs(numbers["sbu"])))
    return Lists(**lists, rows=sum(numbers.values()), repeated=generator.repeated)


def pair_table_of(lists: Lists, folder: Path) -> tuple[RowCounts, Usage]:
    """Build the table under `folder` and remove it again."""
    sources = [
        Conceptual12M(type="cc12m", path=str(lists.cc12m)),
        ConceptualCaptions3M(type="cc3m", path=str(lists.cc3m)),
        SbuCaptions(type="sbu", path=str(lists.sbu)),
    ]
    build = partial(pair_table.build, sources, FilterConfig(), SAMPLES_PER_SHARD, str(folder / "table"), str(folder / "rejected.parquet"), folder / "scratch")
    try:
        return measured(build)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def pandas_of(lists: Lists, folder: Path) -> tuple[int, Usage]:
    """What one would write without us: everything in memory, URLs as they are spelled, later rows of a picture dropped; returns the rows kept."""
    try:
        return measured(partial(_pandas, lists, folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _pandas(lists: Lists, folder: Path) -> int:
    import csv

    import pandas as pd

    tsv: dict[str, Any] = {"sep": "\t", "quoting": csv.QUOTE_NONE, "header": None, "dtype": str, "keep_default_na": False}
    sbu = json.loads(lists.sbu.read_bytes())
    frames = [pd.read_csv(lists.cc12m, names=["url", "caption"], **tsv), pd.read_csv(lists.cc3m, names=["caption", "url"], **tsv)]
    frames.append(pd.DataFrame({"url": sbu["image_urls"], "caption": sbu["captions"]}))
    kept = pd.concat(frames, ignore_index=True).drop_duplicates("url")
    folder.mkdir(parents=True, exist_ok=True)
    kept.to_parquet(folder / "table.parquet")
    return len(kept)


def _write_lines(path: Path, lines: Iterator[str]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        while block := list(islice(lines, BLOCK_ROWS)):
            file.write("".join(block))


def _write_sbu(path: Path, pairs: Sequence[tuple[str, str]]) -> None:
    path.write_text(json.dumps({"image_urls": [url for url, _ in pairs], "captions": [caption for _, caption in pairs]}))


class _Generator:
    """Pictures numbered through over all files: a picture's URL depends on the seed and its number alone, so that a later row can repeat it."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        letters = "eeeaaoiitnsrlhdcumpfgybwvk"
        self.words = ["".join(self.draw.choices(letters, k=self.draw.randint(2, 9))) for _ in range(4096)]
        self.phrases = [" ".join(self.draw.choices(self.words, k=5)) for _ in range(8192)]
        ends = ["com", "com", "com", "net", "org", "co.uk", "de"]
        self.hosts = [f"{self.draw.choice(['www', 'i', 'cdn', 'images', 'media'])}.{word}.{self.draw.choice(ends)}" for word in self.words]
        self.pictures = self.repeated = 0

    def pairs(self, rows: int) -> Iterator[tuple[str, str]]:
        for _ in range(rows):
            repeats = self.pictures and self.draw.random() < REPEATED
            if repeats:
                self.repeated += 1
                url = self._other_spelling(self._url(int(self.pictures * self.draw.random())))
            else:
                url = self._url(self.pictures)
                self.pictures += 1
            yield url, self._caption()

    def _url(self, picture: int) -> str:
        mixed = (picture * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) & MASK
        host, first, second = self.hosts[mixed >> 52], self.words[mixed >> 40 & 4095], self.words[mixed >> 28 & 4095]
        third = self.words[mixed >> 16 & 4095]
        path = f"wp-content/uploads/{first}/20{mixed % 23:02d}/{picture % 12 + 1:02d}/{third}-{second}-{picture:x}"
        if mixed & 31 == 0:  # some addresses of every real list are spelled carelessly
            path = path.replace("-", " ", 1) if mixed & 32 else f"ü{path}"
        return f"http{'s' if mixed & 64 else ''}://{host}/{path}-{mixed & 0xFFFFFFFF:08x}.jpg" + ("?w=600&h=400" if mixed & 896 == 0 else "")

    def _other_spelling(self, url: str) -> str:
        if self.draw.random() < 0.5:
            return url
        scheme, rest = url.split("://")
        host, path = rest.split("/", 1)
        return self.draw.choice([f"{url}#top", f"{scheme.upper()}://{host}/{path}", f"{scheme}://{host.upper()}/{path}", f"{url} "])

    def _caption(self) -> str:
        bits = self.draw.getrandbits(48)
        words = (self.phrases[bits & 8191], self.phrases[bits >> 13 & 8191], self.words[bits >> 26 & 4095], self.words[bits >> 36 & 4095])
        return f"{words[0]} {words[1]} {words[2]} <PERSON> {words[3]}." if bits >> 45 == 0 else " ".join(words)
