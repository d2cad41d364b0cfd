"""The samples an epoch could not deliver: what each was, why, and how often another stood in for it."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

log = logging.getLogger(__name__)

Span = tuple[int, int]  # first sample, number of samples
Entry = dict[str, Any]  # a Damage as first met, with `replaced`: at how many positions another item stood in for it


@dataclass(frozen=True)
class Damage:
    """Damaged samples [sample, sample + samples), met at a position of an epoch: one, or with one reason all of a shard."""

    sample: int
    key: str
    reason: str
    epoch: int
    position: int
    samples: int = 1


class Quarantine:
    """One entry a damaged sample or shard; it decides again on resume, so what is listed stays replaced even where it was repaired since.

    Several ranks count what their own steps met since they last shared; `share` adds that up, so that the sum is what one rank alone would have counted.
    """

    def __init__(self) -> None:
        self._shared: dict[Span, Entry] = {}  # the same on every rank
        self._own: dict[Span, Entry] = {}
        self._shards: list[Entry] = []  # those of both that are whole shards
        self.num_shared = 0  # samples every rank knows of

    @property
    def entries(self) -> list[Entry]:
        """All of them in the order they were met, each with sample, samples, key, reason, epoch and position where it was first met, and `replaced`."""
        return merged([list(self._shared.values()), list(self._own.values())])

    @property
    def num_unshared(self) -> int:
        """Samples the other ranks have not been told of; together the ranks have at most `num_shared` and the sum of this over them."""
        return sum(entry["samples"] for span, entry in self._own.items() if span not in self._shared)

    def restore(self, entries: Sequence[Entry]) -> None:
        """Take over a checkpoint's entries, the same on every rank."""
        self._shared = {_span(entry): dict(entry) for entry in entries}
        self._own = {}
        self.num_shared = num_samples(entries)
        self._shards = [entry for entry in self._shared.values() if entry["samples"] > 1]

    def share(self, of_all: Callable[[list[Entry]], list[list[Entry]]]) -> list[Entry]:
        """The entries of all ranks; every rank must call. `of_all` gives every rank's value, in rank order, on every rank."""
        self.restore(merged([list(self._shared.values()), *of_all(list(self._own.values()))]))
        return self.entries

    def of(self, sample: int) -> Entry | None:
        """The entry that holds the sample."""
        one = self._shared.get((sample, 1)) or self._own.get((sample, 1))
        return one or next((entry for entry in self._shards if entry["sample"] <= sample < entry["sample"] + entry["samples"]), None)

    def record(self, damages: Iterable[Damage]) -> None:
        """Count what a delivered step met."""
        for damage in damages:
            span = damage.sample, damage.samples
            if span not in self._own:
                self._own[span] = {**asdict(damage), "replaced": 0}
                if span not in self._shared:
                    log.warning("quarantined: %s", damage.reason)
                    self._shards = self._shards + [self._own[span]] * (damage.samples > 1)  # a new list: workers may be looking through the old one
            self._own[span]["replaced"] += 1


def merged(parts: Iterable[Sequence[Entry]]) -> list[Entry]:
    """The entries of several counts as of one: each as it was first met, in that order, with the counts added up."""
    found: dict[Span, Entry] = {}
    for entry in sorted((entry for part in parts for entry in part), key=lambda entry: (entry["epoch"], entry["position"])):
        one = found.setdefault(_span(entry), {**entry, "replaced": 0})
        one["replaced"] += entry["replaced"]
    return list(found.values())


def _span(entry: Entry) -> Span:
    return entry["sample"], entry["samples"]


def num_samples(entries: Iterable[Entry]) -> int:
    """Samples that the entries hold; one that is listed by itself and with its shard counts once."""
    total, end = 0, 0
    for first, last in sorted((entry["sample"], entry["sample"] + entry["samples"]) for entry in entries):
        total += max(0, last - max(first, end))
        end = max(end, last)
    return total


def by_shard(entries: Iterable[Entry], name_of: Callable[[int], str]) -> list[tuple[str, int, str]]:
    """(shard, samples in quarantine, a reason) of each shard, the worst first; `name_of` a sample is `<shard> row <number>`."""
    listed: dict[str, list[Entry]] = {}
    for entry in entries:
        listed.setdefault(name_of(entry["sample"]).rpartition(" row ")[0], []).append(entry)
    found = [(shard, num_samples(of_shard), max(of_shard, key=lambda entry: entry["samples"])["reason"]) for shard, of_shard in listed.items()]
    return sorted(found, key=lambda shard: -shard[1])
