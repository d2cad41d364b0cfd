"""How much of a dataset a run may do without: the quarantine of all ranks held against the share the user allows."""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.core import storage
from pipeline.core.errors import BelowFloor, DataError
from shards.dataset import Dataset
from shards.order.mixing import MixedDataset
from shards.quarantine import Entry, by_shard, num_samples
from shards.verify import lost_shards

log = logging.getLogger(__name__)

NAMED = 3  # shards in the line that ends a run


@dataclass(frozen=True)
class QuarantineBudget:
    """`share` of `samples` may be in quarantine; `name_of` names a sample's shard and row."""

    share: float
    samples: int
    name_of: Callable[[int], str]

    def allows(self, quarantined: int) -> bool:
        return quarantined <= self.share * self.samples

    def check(self, entries: Sequence[Entry]) -> None:
        """Raises BelowFloor, naming the worst shards, when more is in quarantine than the share allows."""
        quarantined = num_samples(entries)
        if self.allows(quarantined):
            return
        worst = "; ".join(f"{shard} ({count}: {_briefly(reason, shard)})" for shard, count, reason in by_shard(entries, self.name_of)[:NAMED])
        raise BelowFloor(
            f"training: {quarantined} of {self.samples} samples ({100 * quarantined / self.samples:.3g} %) are in quarantine, training.quarantine_budget "
            f"allows {100 * self.share:g} %; worst: {worst}; raise it to go on without them, or copy those shards again and start a new run"
        )


def _briefly(reason: str, shard: str) -> str:
    """Without the shard's name and without advice."""
    return reason.removeprefix(shard).partition(";")[0].lstrip(": ")


def check_shards(dataset: Dataset | MixedDataset, budget: QuarantineBudget) -> None:
    """Name the shards that one listing of each folder shows to be lost, before the first step.

    Raises:
        BelowFloor: they alone are more than the budget allows.
        DataError: they are all shards of a dataset of a blend, whose samples only its own can replace.
    """
    entries: list[Entry] = []
    before = 0
    for part in dataset.parts:
        lost = lost_shards(part.dataset.folder, part.dataset.manifest)
        if len(dataset.parts) > 1 and len(lost) == len(part.dataset.manifest.shards):
            raise DataError(
                f"{part.dataset.folder}: every shard of the blend's dataset {part.name!r} is lost ({lost[0][1]}); "
                "copy them again, or take it out of the blend and start a new run"
            )
        for shard, reason in lost:
            log.warning("lost: %s; its samples will be replaced and listed in the quarantine", reason)
            first = before + int(part.dataset.shard_starts[shard])
            entries.append({"sample": first, "samples": part.dataset.manifest.shards[shard].samples, "reason": reason})
        before += part.dataset.num_samples
    budget.check(entries)


def write_quarantine(folder: Path, entries: Sequence[Entry], budget: QuarantineBudget) -> None:
    """`<folder>/quarantine.json` for people and the report: the entries, and their sum per shard."""
    shards = [{"shard": shard, "samples": count, "reason": reason} for shard, count, reason in by_shard(entries, budget.name_of)]
    record = {"samples": num_samples(entries), "of": budget.samples, "budget": budget.share, "shards": shards, "entries": list(entries)}
    storage.write_bytes(str(folder / "quarantine.json"), json.dumps(record, indent=1, ensure_ascii=False).encode())
