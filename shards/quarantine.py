"""The samples an epoch could not deliver: what each was, why, and how often another stood in for it."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Damage:
    """A damaged sample met at a position of an epoch."""

    sample: int
    key: str
    reason: str
    epoch: int
    position: int


class Quarantine:
    """One entry a damaged sample; it decides again on resume, so a sample listed stays replaced even where its shard was repaired since."""

    def __init__(self) -> None:
        self._entries: dict[int, dict[str, Any]] = {}

    @property
    def entries(self) -> list[dict[str, Any]]:
        """Each with sample, key, reason, epoch and position where it was first met, and `replaced`: how often."""
        return [dict(entry) for entry in self._entries.values()]

    def restore(self, entries: Sequence[dict[str, Any]]) -> None:
        """Take over a checkpoint's entries."""
        self._entries = {int(entry["sample"]): dict(entry) for entry in entries}

    def of(self, sample: int) -> dict[str, Any] | None:
        return self._entries.get(sample)

    def record(self, damages: Iterable[Damage]) -> None:
        """Count what a delivered step met."""
        for damage in damages:
            if damage.sample not in self._entries:
                log.warning("quarantined: %s", damage.reason)
                self._entries[damage.sample] = {**asdict(damage), "replaced": 0}
            self._entries[damage.sample]["replaced"] += 1
