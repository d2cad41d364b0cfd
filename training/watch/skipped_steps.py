"""The record of skipped steps: a line in the log and in `skipped_steps.jsonl` for each, and what recurs in those that end a run."""

import json
import logging
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from training.watch.non_finite import IllMicroBatch, SkippedStep

log = logging.getLogger(__name__)

NAMED = 8  # samples, parameters or ranks that a line names before it counts the rest


class SkippedSteps:
    """The last `keep` skipped steps. Every rank has the same; rank 0 writes to `<train_folder>/skipped_steps.jsonl` and `.md`."""

    def __init__(self, train_folder: Path, rank: int, keep: int) -> None:
        self._folder, self._rank = train_folder, rank
        self._last: deque[SkippedStep] = deque(maxlen=keep)

    def add(self, skipped: SkippedStep) -> None:
        """Remember it, say it in the log, and append it to the file."""
        self._last.append(skipped)
        if self._rank == 0:
            log.warning("%s", line(skipped))
            self._write("skipped_steps.jsonl", "a", json.dumps(asdict(skipped)) + "\n")

    def report(self) -> str:
        """One line about the last skipped steps, for the message a run ends with; rank 0 writes the same at length to `skipped_steps.md`."""
        path = self._folder / "skipped_steps.md"
        if self._rank == 0:
            self._write(path.name, "w", markdown(self._last))
        return f"{summary(self._last)}; more in {path}"

    def _write(self, name: str, mode: str, text: str) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with (self._folder / name).open(mode) as file:
                file.write(text)
        except OSError as error:  # a full disk is no reason to end a run that can go on
            log.warning("%s cannot be written: %s", self._folder / name, error)


def line(skipped: SkippedStep) -> str:
    """What is known of one skipped step, for the log."""
    ill = skipped.micro_batches
    by_loss = {f"loss/{name} is {value}": None for one in ill for name, value in one.losses.items()}
    parts = [f"{loss} on {_ranks(one.rank for one in ill if loss in _told(one))}" for loss in by_loss]
    parts += [f"{name} holds values that are not finite" for name in _shortened(skipped.weights)]
    named = [f"sample {_of_sample(one, key, what)}" for one, key, what in _samples(ill) if one.named]
    parts += [*named[:NAMED], *([f"{len(named) - NAMED} samples more"] if len(named) > NAMED else [])]
    if not any(one.named for one in ill):
        parts += [f"every row's {what} on {_ranks(one.rank for one in ill if what in one.everywhere)}" for what in _all(one.everywhere for one in ill)]
    unclear = [f"{key} (rank {one.rank})" for one, key, _ in _samples(ill) if not one.named]
    parts += [f"no row stands out, it is one of the samples {', '.join(_shortened(unclear))}"] if unclear else []
    if skipped.gradients and not by_loss:
        parts.append(f"all losses are finite, the gradient is not: {', '.join(skipped.gradients)}")
    return f"step {skipped.step} skipped: {'; '.join(parts) or 'a loss or gradient was not finite, and everything is when computed again'}"


def summary(records: Sequence[SkippedStep]) -> str:
    """One line: what recurs in several skipped steps, most frequent first."""
    if not records:
        return "no skipped step is on record"
    recurring = [f"{what} in {count}" for what, count in _recurring(records)[:NAMED]]
    steps = f"step {records[0].step}" if len(records) == 1 else f"{len(records)} steps, {records[0].step} to {records[-1].step},"
    return f"{steps} skipped for a non-finite loss or gradient: {', '.join(recurring) or 'nothing was found when computed again'}"


def markdown(records: Sequence[SkippedStep]) -> str:
    """What recurs, then a line a step."""
    table = [f"| {what} | {count} |" for what, count in _recurring(records)]
    steps = [f"- {line(record)}" for record in records]
    return "\n".join(["# Skipped steps that ended the run", "", summary(records), "", "| what | steps |", "|---|---|", *table, "", *steps, ""])


def _recurring(records: Iterable[SkippedStep]) -> list[tuple[str, int]]:
    counts: Counter[str] = Counter()
    for record in records:
        counts.update(_all([f"loss/{name}" for name in one.losses] for one in record.micro_batches))
        counts.update(_all([f"rank {one.rank}"] for one in record.micro_batches))
        counts.update(_all([f"sample {key}"] for one, key, _ in _samples(record.micro_batches) if one.named))
        counts.update(record.weights)
        counts.update(f"gradient of {tower}" for tower in record.gradients)
    return counts.most_common()


def _samples(ill: Iterable[IllMicroBatch]) -> list[tuple[IllMicroBatch, str, list[str]]]:
    return [(one, sample.key, sample.what) for one in ill for sample in one.samples]


def _of_sample(one: IllMicroBatch, key: str, what: Sequence[str]) -> str:
    shown = "its picture is" if "picture" in what else f"its {' and '.join(what)} are"  # a picture's states follow from it
    return f"{key} on rank {one.rank} ({shown} not finite)"


def _told(one: IllMicroBatch) -> set[str]:
    return {f"loss/{name} is {value}" for name, value in one.losses.items()}


def _all(lists: Iterable[Sequence[str]]) -> list[str]:
    return list(dict.fromkeys(name for names in lists for name in names))


def _ranks(ranks: Iterable[int]) -> str:
    found = sorted(set(ranks))
    return f"rank {found[0]}" if len(found) == 1 else f"ranks {', '.join(_shortened(list(map(str, found))))}"


def _shortened(names: Sequence[str]) -> list[str]:
    return [*names[:NAMED], f"{len(names) - NAMED} more"] if len(names) > NAMED else list(names)
