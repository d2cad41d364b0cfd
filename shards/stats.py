"""What is in a dataset: counts, sizes, resolutions, captions, looked up in samples that are spread evenly over all of it."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.core.errors import DataError
from shards import index, layout, provenance, rewrite, tar
from shards.manifest import Manifest, ShardEntry, read_manifest
from shards.reshard.conditions import SampleFacts
from shards.text_rules import pre_caption
from shards.workers import Progress, no_progress, spread

_PERCENTILES = (0, 5, 50, 95, 100)
_SHORT_SIDES = (0, 64, 128, 192, 256, 320, 384, 448, 512, 640, 768, 1024, 2048)  # pixels; the last is open
_ASPECTS = (0, 0.5, 0.67, 0.8, 1.25, 1.5, 2)  # width / height
_WORDS = (0, 1, 2, 3, 5, 9, 17, 33, 65)
_COMMON = 5  # captions named that several samples have


@dataclass(frozen=True)
class Summary:
    """A quantity's mean and its 0, 5, 50, 95 and 100 % points; `histogram` counts by bins that begin at `bins`, the last of them open."""

    mean: float
    points: tuple[float, ...]
    bins: tuple[float, ...] = ()
    histogram: tuple[int, ...] = ()

    def __str__(self) -> str:
        smallest, low, median, high, largest = (f"{point:.3g}" if point < 100 else f"{point:.0f}" for point in self.points)
        return f"median {median}, mean {self.mean:.1f}, 90 % within {low}..{high}, all within {smallest}..{largest}"

    def bars(self, width: int = 40) -> Iterator[str]:
        """A line for each bin between the first and the last that are not empty."""
        filled = np.flatnonzero(self.histogram)
        most = max(self.histogram, default=0)
        for place in range(filled[0], filled[-1] + 1) if len(filled) else ():
            count = self.histogram[place]
            yield f"{self._bin(place):>14}  {count:>8}  {'█' * round(width * count / most) or '▏' * bool(count)}".rstrip()

    def _bin(self, place: int) -> str:
        """`256 - 319`, `5`, `0.8 - 1.25`, `2 and more`"""
        first = self.bins[place]
        if place + 1 == len(self.bins):
            return f"{first:g} and more"
        after = self.bins[place + 1]
        if any(isinstance(one, float) for one in self.bins):
            return f"{first:g} - {after:g}"
        return f"{first}" if after == first + 1 else f"{first} - {after - 1:g}"


@dataclass(frozen=True)
class Stats:
    """Counts are of the whole dataset; everything from `looked_at` on of the samples read.

    `distinct_captions` of `captions_read` are different to the letter; `common_captions` are those that most samples have, with how many do.
    """

    folder: str
    manifest: int
    created_by: str
    fingerprint: str
    samples: int
    captions: int
    shards: int
    bytes: int
    sources: dict[str, int]
    outcomes: dict[str, int]
    looked_at: int
    damaged: int
    formats: dict[str, int]
    image_bytes: Summary | None
    width: Summary | None
    height: Summary | None
    short_side: Summary | None
    aspect: Summary | None
    caption_words: Summary | None
    caption_characters: Summary | None
    captions_read: int
    distinct_captions: int
    common_captions: dict[str, int]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Look:
    """Some rows of one shard to look at."""

    folder: str
    root: str
    shard: ShardEntry
    rows: tuple[int, ...]
    count_sources: bool = False


@dataclass
class Found:
    """What the samples of one look have, a value a sample, or a caption; `texts` holds how many samples have a caption, by its hash."""

    sources: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    damaged: int = 0
    width: list[int] = field(default_factory=list)
    height: list[int] = field(default_factory=list)
    image_bytes: list[int] = field(default_factory=list)
    words: list[int] = field(default_factory=list)
    characters: list[int] = field(default_factory=list)
    texts: Counter[bytes] = field(default_factory=Counter)
    example: dict[bytes, str] = field(default_factory=dict)

    def add(self, other: "Found") -> None:
        self.damaged += other.damaged
        for mine, more in ((self.formats, other.formats), (self.texts, other.texts)):
            mine.update(more)  # type: ignore[arg-type]
        for name in ("width", "height", "image_bytes", "words", "characters"):
            getattr(self, name).extend(getattr(other, name))
        self.example.update(other.example)


def gather(
    folder: str,
    manifest: int | None = None,
    index_root: str | None = None,
    limit: int | None = None,
    workers: int | None = None,
    progress: Progress = no_progress,
) -> Stats:
    """Look at `limit` samples, evenly spread, or at all of them; damaged ones are counted.

    Raises DataError when there is no dataset, or a shard or an index is missing.
    """
    root = index_root or folder
    pinned = read_manifest(root, manifest)
    looks = looks_at(folder, root, pinned, limit, provenance.shards(root))
    found = dict[str, Found]()
    chosen, looked_at, done = sum(len(look.rows) for look in looks), 0, 0
    size = sum(shard.bytes for shard in pinned.shards) * chosen // max(1, pinned.num_samples)
    for look, one in spread(_found, looks, workers, size):
        found[look.shard.name] = one
        looked_at += len(look.rows)
        done += sum(one.image_bytes)
        progress("reading", done, done * chosen // max(1, looked_at))  # as if those to come were as large
    together = Found()
    for look in looks:  # in their order, not in that of the workers
        together.add(found[look.shard.name])
    return _summarised(folder, pinned, chosen, together, _sources(pinned, {name: one.sources for name, one in found.items()}))


def looks_at(folder: str, root: str, manifest: Manifest, limit: int | None, with_provenance: frozenset[str] = frozenset()) -> list[Look]:
    """At most `limit` samples, evenly spread over the dataset, by the shard that holds them; a shard whose sources are to be counted has a look in any case."""
    looks, start = [], 0
    chosen = spread_evenly(manifest.num_samples, limit)
    for shard in manifest.shards:
        first, stop = np.searchsorted(chosen, (start, start + shard.samples))
        rows = tuple((chosen[first:stop] - start).tolist())
        if rows or shard.name in with_provenance:
            looks.append(Look(folder, root, shard, rows, shard.name in with_provenance))
        start += shard.samples
    return looks


def spread_evenly(total: int, limit: int | None) -> npt.NDArray[np.int64]:
    """At most `limit` numbers of range(total), evenly spread."""
    many = total if limit is None else min(total, limit)
    return np.linspace(0, total - 1, many).round().astype(np.int64) if many else np.empty(0, np.int64)


def samples(look: Look) -> Iterator[SampleFacts | None]:
    """The samples of a look; None for one whose bytes are not those that were indexed.

    Raises DataError when the shard or its index is missing.
    """
    if not look.rows:
        return
    path, shard = layout.tar_path(look.folder, look.shard.name), index.read_index(layout.index_path(look.root, look.shard.name))
    rows = np.array(look.rows)
    if rows[-1] >= len(shard):
        raise DataError(f"{layout.index_path(look.root, look.shard.name)}: indexes {len(shard)} samples, the manifest says {look.shard.samples}; index again")
    for row, sample in zip(look.rows, rewrite.read_samples(path, shard.offset[rows], shard.length[rows], shard.tar_bytes), strict=True):
        if rewrite.damage(path, row, sample, int(shard.crc32c[row])) is not None:
            yield None
        else:
            where = f"{path} row {row}"
            yield SampleFacts(sample, next(tar.groups(sample, where, whole=False)), look.shard.source, where)


def captions_of(facts: SampleFacts) -> tuple[str, ...]:
    """Raises DataError when the json is damaged."""
    return tar.captions_of(facts.data, facts.group, facts.json)


def _found(look: Look) -> Found:
    found = Found()
    if look.count_sources:
        found.sources.update(provenance.sources(look.root, look.shard.name) or [])
    for facts in samples(look):
        try:
            if facts is None:
                raise DataError(look.shard.name)
            picture, captions = facts.picture, captions_of(facts)
        except DataError:
            found.damaged += 1
            continue
        found.formats[picture["format"]] += 1
        found.width.append(picture["width"])
        found.height.append(picture["height"])
        found.image_bytes.append(picture["bytes"])
        for caption in captions:
            found.words.append(len(pre_caption(caption, max_words=10_000).split()))
            found.characters.append(len(caption))
        for caption in dict.fromkeys(captions):
            key = hashlib.sha256(caption.encode("utf-8", "surrogatepass")).digest()[:8]
            found.texts[key] += 1
            found.example[key] = caption[:80]
    return found


def _summarised(folder: str, manifest: Manifest, chosen: int, found: Found, sources: dict[str, int]) -> Stats:
    width, height = np.array(found.width), np.array(found.height)
    common = {found.example[key]: count for key, count in found.texts.most_common(_COMMON) if count > 1}
    return Stats(
        folder, manifest.number, manifest.created_by, manifest.fingerprint,
        manifest.num_samples, manifest.num_captions, len(manifest.shards), sum(shard.bytes for shard in manifest.shards),
        sources, manifest.outcomes, chosen, found.damaged, dict(found.formats.most_common()),
        _summary(found.image_bytes), _summary(width), _summary(height), _summary(np.minimum(width, height), _SHORT_SIDES),
        _summary(width / np.maximum(height, 1), _ASPECTS), _summary(found.words, _WORDS), _summary(found.characters),
        found.texts.total(), len(found.texts), common,
    )  # fmt: skip


def _sources(manifest: Manifest, tables: Mapping[str, Counter[str]]) -> dict[str, int]:
    """Those counted in a shard's table of provenance; of a shard without one, or with that of another tar, the source the manifest names."""
    found = Counter[str]()
    for shard in manifest.shards:
        table = tables.get(shard.name, Counter[str]())
        found.update(table if table.total() == shard.samples else {shard.source: shard.samples})
    return dict(found.most_common())


def _summary(values: Sequence[int] | npt.NDArray[Any], bins: Sequence[float] = ()) -> Summary | None:
    if not len(values):
        return None
    points = tuple(float(point) for point in np.percentile(values, _PERCENTILES))
    histogram = np.histogram(values, [*bins, np.inf])[0].tolist() if bins else ()
    return Summary(float(np.mean(values)), points, tuple(bins), tuple(histogram))


def lines(stats: Stats) -> Iterable[str]:
    """The statistics as a person reads them."""
    yield f"manifest {stats.manifest} ({stats.created_by}), fingerprint {stats.fingerprint}"
    yield f"{stats.samples} samples, {stats.captions} captions, {stats.shards} shards, {stats.bytes / 1e6:.1f} MB"
    for title, counts in (("outcomes", stats.outcomes), ("sources", stats.sources), ("formats", stats.formats)):
        yield f"{title}: " + (", ".join(f"{name or '(unnamed)'} {count}" for name, count in counts.items()) or "none")
    yield f"looked at {stats.looked_at} samples, {stats.damaged} of them damaged"
    yield f"captions: {stats.captions_read} read, {stats.distinct_captions} different"
    yield from (f"    {count} samples have {caption!r}" for caption, count in stats.common_captions.items())
    for name in ("image_bytes", "width", "height", "short_side", "aspect", "caption_words", "caption_characters"):
        summary: Summary | None = getattr(stats, name)
        if summary is not None:
            yield f"{name.replace('_', ' ')}: {summary}"
            yield from summary.bars()
