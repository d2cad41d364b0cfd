"""What the report shows of ingest: the stage's result, and what the outcome tables in the dataset folder add to it."""

import json
import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ingest import status
from ingest.outcomes import Outcome
from ingest.row_counts import RowCounts
from pipeline.app import ingest_plots
from pipeline.app.ingest_facts import Facts, facts_of
from pipeline.core.errors import DataError
from shards.manifest import Manifest, read_manifest

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SourceRow:
    """A source's line: rows of its lists, where they went, and the paper's counts; None where unknown."""

    name: str
    rows: int
    rejected: int
    merged: int
    pictures: int
    captions: int
    stored: int | None
    paper_pictures: int | None
    paper_captions: int | None

    @property
    def paper_share(self) -> float | None:
        """Stored pictures in percent of the paper's."""
        return 100 * self.stored / self.paper_pictures if self.stored is not None and self.paper_pictures else None


def ingest_page(record: dict[str, Any] | None, run_folder: Path) -> dict[str, Any] | None:
    """The context of ingest.html.jinja; None when the stage has neither finished nor begun."""
    running = _running(run_folder)
    if record is None:
        return {"running": running} if running else None
    result = record["result"]
    counts = RowCounts.from_json({"sources": {}, **result["rows"]})
    output = _output(run_folder)
    dataset, facts = _dataset(output)
    outcomes = dict(sorted((dataset.outcomes if dataset else result["outcomes"]).items(), key=lambda item: -item[1]))
    total = sum(outcomes.values())
    return {
        **result,
        "running": running if running and running["state"] != "finished" else None,
        "total": total,
        "table": [(name, count, 100 * count / max(total, 1)) for name, count in outcomes.items()],
        "sources": _sources(counts, facts, dataset),
        "overlap": _overlap(counts),
        "reasons": _reasons(counts),
        "rounds": dataset.config.get("rounds", []) if dataset else [],
        "repeated": _repeated(result.get("duplicates", {})),
        "size": _size(sum(shard.bytes for shard in dataset.shards)) if dataset else None,
        "body_size": _size(facts.bytes) if facts else None,
        "facts": facts,
        "facts_missing": None if facts else output,
        "plots": _plots(facts, outcomes) if facts and facts.rows else [],
    }


def _running(run_folder: Path) -> dict[str, Any] | None:
    """Where ingest is, or how it ended."""
    path = run_folder / status.FILE
    if not path.exists():
        return None
    record: dict[str, Any] = json.loads(path.read_text())
    record["eta"] = status.duration(record["eta_s"]) if record["eta_s"] is not None else None
    return record


def _output(run_folder: Path) -> str | None:
    path = run_folder / "config.yaml"
    section = (yaml.safe_load(path.read_text()) or {}).get("ingest") if path.exists() else None
    return section["output"] if section else None


def _dataset(output: str | None) -> tuple[Manifest | None, Facts | None]:
    """None for a dataset that is not there any more, or that this machine cannot reach: the stage's result tells enough for a report."""
    if output is None:
        return None, None
    try:
        dataset = read_manifest(output)
        return dataset, facts_of(output, dataset)
    except (DataError, KeyError) as error:  # KeyError: a manifest of another tool says less
        log.warning("report: %s cannot be read, so the page of ingest has no plots: %s", output, error)
        return None, None


def _sources(counts: RowCounts, facts: Facts | None, dataset: Manifest | None) -> list[SourceRow]:
    options = {_label(source): source for source in (dataset.config["ingest"]["sources"] if dataset else [])}
    rows = []
    for name, one in counts.sources.items():
        stored = facts.by_source[name][Outcome.SUCCESS.value] if facts else None
        paper = options.get(name, {})
        numbers = (one.rows, sum(one.rejected.values()), one.merged, one.pictures, one.captions)
        rows.append(SourceRow(name, *numbers, stored, paper.get("paper_pictures"), paper.get("paper_captions")))
    return rows


def _label(source: dict[str, Any]) -> str:
    """As ingest calls the source: its name, or its file's."""
    return source.get("name") or str(source["path"]).rstrip("/").rsplit("/", 1)[-1].split(".", 1)[0]


def _overlap(counts: RowCounts) -> list[tuple[str, list[int]]] | None:
    """Per source the rows of every source that named one of its pictures again; None when no source met another."""
    names = list(counts.sources)
    if not any(rows for first, others in counts.overlap.items() for later, rows in others.items() if first != later):
        return None
    return [(name, [counts.overlap.get(name, {}).get(later, 0) for later in names]) for name in names]


def _reasons(counts: RowCounts) -> list[tuple[str, str, int]]:
    """(what, reason, number), most frequent first."""
    rejected = [("rows rejected", reason, number) for reason, number in Counter(counts.rejected).most_common()]
    return rejected + [("captions dropped", reason, number) for reason, number in Counter(counts.dropped_captions).most_common()]


def _repeated(duplicates: dict[str, dict[str, dict[str, int]]]) -> list[tuple[str, str, str, int]]:
    """(kind, source of the first, source of the later, samples)."""
    return [(kind, first, later, n) for kind, firsts in duplicates.items() for first, others in firsts.items() for later, n in others.items()]


def _size(size_bytes: int) -> str:
    """`410 MB`, `0.97 TB`: three digits."""
    return next((f"{size_bytes / unit:.3g} {name}" for unit, name in ((1e12, "TB"), (1e9, "GB")) if size_bytes >= unit), f"{size_bytes / 1e6:.3g} MB")


def _plots(facts: Facts, outcomes: dict[str, int]) -> list[tuple[str, str]]:
    """(title, PNG) of what there is something to show of."""
    plots = [("Outcomes by source", ingest_plots.outcomes_plot(facts.by_source))]
    if set(outcomes) - {Outcome.SUCCESS.value}:
        plots.append(("Why pictures failed", ingest_plots.failures_plot(outcomes)))
    if facts.stored_side.total:
        plots.append(("Sizes", ingest_plots.sizes_plot(facts)))
    if facts.caption_words.total:
        plots.append(("Captions", ingest_plots.captions_plot(facts)))
    if facts.latency_s.total:
        plots.append(("Latency", ingest_plots.latency_plot(facts)))
    plots.append((f"Hosts asked most, {min(ingest_plots.TOP_HOSTS, len(facts.hosts))} of {len(facts.hosts):,}", ingest_plots.hosts_plot(facts)))
    return plots
