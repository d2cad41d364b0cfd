"""The ingest page: counts that agree with the rows of the outcome tables, sampled where there are many, and a line where there is nothing to read."""

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from ingest import published
from ingest.row_counts import SourceCounts
from pipeline.app.ingest_facts import Facts, Histogram, facts_of
from pipeline.app.ingest_page import ingest_page
from pipeline.app.report import write_report
from pipeline.core.run_directory import RunDirectory
from shards.manifest import Manifest, publish, read_manifest

SOURCES = {"cc3m": 0.5, "sbu": 0.3, "coco": 0.2}
FAILURES = ("http_404", "timeout", "dns_failed", "http_403", "not_an_image", "too_small", "connection_failed", "tls_failed", "http_410", "opted_out")
PER_SHARD = 200
Rows = list[dict[str, Any]]


def outcome_rows(shard: int, rows: int = PER_SHARD) -> Rows:
    """Rows as ingest writes them: three sources one after the other, COCO without failures, hosts of very different sizes."""
    draw, made = np.random.default_rng(shard), []
    for number in range(rows):
        source = str(draw.choice(list(SOURCES), p=list(SOURCES.values())))
        failed = source != "coco" and draw.random() < 0.35
        host = f"host-{int(draw.zipf(1.5)) % 60}.example" + (".with-a-name-that-no-axis-can-show-in-full.example" if number % 50 == 0 else "")
        row: dict[str, Any] = {
            "key": f"{shard:05d}{number:04d}",
            "uid": f"{shard}-{number}",
            "url": f"http://{host}/{number}.jpg",
            "source": source,
            "extra": None,
        }
        row |= {"outcome": str(draw.choice(FAILURES, p=np.arange(10, 0, -1) / 55)) if failed else "success", "attempts": 1 + int(failed)}
        row |= {"latency_s": float(draw.lognormal(-1, 1)), "bytes": 0 if failed else int(draw.lognormal(11.5, 0.8)), "detail": "", "http_status": 200}
        short = int(draw.integers(200, 1200))
        row |= {} if failed else {"width": min(short, 384) * 4 // 3, "height": min(short, 384), "original_width": short * 4 // 3, "original_height": short}
        row["captions"] = [" ".join(["word"] * int(draw.integers(3, 25))) for _ in range(5 if source == "coco" else 1)]
        made.append(row)
    return made


def write_dataset(output: Path, shards: int, rounds: list[dict[str, Any]] | None = None) -> Manifest:
    counted = Counter[str]()
    for shard in range(shards):
        counted.update(published.write(str(output), f"{shard:05d}", outcome_rows(shard), None).outcomes)
    pictures = shards * PER_SHARD
    lists = {name: SourceCounts(round(pictures * share) + 40, round(pictures * share), 30, 2 * pictures, {"no_caption": 10}) for name, share in SOURCES.items()}
    whole = SourceCounts(pictures + 120, pictures, 90, 6 * pictures, {"no_caption": 30}, {"too_few_words": 7})
    overlap = {"cc3m": {"cc3m": 10, "sbu": 50}, "sbu": {"coco": 30}, "coco": {}}
    rows = {**asdict(whole), "sources": {name: asdict(one) for name, one in lists.items()}, "overlap": overlap}
    sources = [{"type": "cc3m", "path": f"data/{name}.tsv", "name": None, "paper_pictures": 10_000 if name != "coco" else None} for name in SOURCES]
    config = {"rows": rows, "ingest": {"samples_per_shard": PER_SHARD, "sources": sources}} | ({"rounds": rounds} if rounds else {})
    return publish(str(output), [], dict(counted), config)


def reported(run_folder: Path, shards: int = 3) -> dict[str, Any]:
    """A finished ingest in a run folder; returns its record."""
    dataset = write_dataset(run_folder / "dataset", shards)
    result = {"outcomes": dataset.outcomes, "rows": dataset.config["rows"], "shards": shards, "samples": dataset.outcomes["success"], "captions": 9999}
    result["duplicates"] = {"exact": {"cc3m": {"sbu": 4321}}, "near": {}}
    directory = RunDirectory(run_folder)
    directory.finish("ingest", "x", result, seconds=12)
    (run_folder / "config.yaml").write_text(yaml.safe_dump({"ingest": {"output": str(run_folder / "dataset")}}))
    record = directory.result("ingest")
    assert record is not None
    return record


def counted_plainly(rows: Rows) -> Facts:
    """Row by row, as anybody would."""
    facts = Facts()
    for row in rows:
        facts.by_source[row["source"]][row["outcome"]] += 1
        host = row["url"].split("/")[2]
        facts.hosts[host] += 1
        facts.hosts_success[host] += row["outcome"] == "success"
        facts.bytes += row["bytes"]
        facts.requests += row["attempts"]
    return facts


def test_the_facts_are_those_of_every_row(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, shards=3)
    rows = [row for shard in range(3) for row in outcome_rows(shard)]
    facts, plain = facts_of(str(tmp_path), dataset), counted_plainly(rows)
    assert (facts.rows, facts.rows_sampled, facts.sampled) == (600, 600, False)
    for name in ("by_source", "hosts", "hosts_success", "bytes", "requests"):
        assert getattr(facts, name) == getattr(plain, name), name
    stored = [row for row in rows if row["outcome"] == "success"]
    words = Counter(len(caption.split()) for row in stored for caption in row["captions"])
    assert {edge: int(count) for edge, count in enumerate(facts.caption_words.counts, start=1) if count} == words
    assert facts.captions_per_picture.counts[4] == sum(row["source"] == "coco" for row in stored)
    assert facts.original_side.total == facts.stored_side.total == len(stored)
    assert facts.latency_s.total == 600


def test_of_many_rows_outcomes_are_exact_and_the_rest_is_a_sample_spread_over_the_shards(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, shards=10)
    facts = facts_of(str(tmp_path), dataset, sample_rows=700)
    assert facts.sampled
    assert (facts.shards, facts.shards_sampled, facts.rows_sampled) == (10, 4, 800)
    assert sum(facts.by_source.values(), Counter()) == dataset.outcomes
    assert facts.hosts == counted_plainly([row for shard in (0, 3, 6, 9) for row in outcome_rows(shard)]).hosts


def test_a_row_that_was_tried_again_counts_by_its_newest_outcome(tmp_path: Path) -> None:
    write_dataset(tmp_path, shards=2)
    tried = [row for shard in range(2) for row in outcome_rows(shard) if row["outcome"] == "timeout"]
    again = [{**row, "outcome": "success" if number % 2 else "timeout"} for number, row in enumerate(tried)]
    published.write(str(tmp_path), "00002", again, None)
    published.write(str(tmp_path), "00003", again[:3], None)  # of a round that no manifest counts yet
    before = read_manifest(str(tmp_path))
    rounds = [{"shards": [2, 3], "retried": {"timeout": len(tried)}, "added": len(tried) // 2}]
    after = Counter(before.outcomes) - Counter(timeout=len(tried)) + Counter(row["outcome"] for row in again)
    dataset = publish(str(tmp_path), [], dict(after), before.config | {"rounds": rounds})
    facts = facts_of(str(tmp_path), dataset)
    assert sum(facts.by_source.values(), Counter()) == after
    assert facts.rows == 2 * PER_SHARD


def test_a_quantile_is_right_to_one_step() -> None:
    histogram = Histogram(np.arange(0, 101))
    histogram.add(np.arange(100) + 0.5)
    assert histogram.quantile(0.5) == pytest.approx(50, abs=1)
    assert histogram.quantile(0.99) == pytest.approx(99, abs=1)


def test_sources_stand_beside_the_papers_counts_and_add_up(tmp_path: Path) -> None:
    page = ingest_page(reported(tmp_path), tmp_path)
    assert page is not None
    assert [source.name for source in page["sources"]] == list(SOURCES)
    assert all(source.rows == source.rejected + source.merged + source.pictures for source in page["sources"])
    assert sum(source.stored for source in page["sources"]) == page["outcomes"]["success"]
    first, last = page["sources"][0], page["sources"][-1]
    assert first.paper_share == pytest.approx(first.stored / 100)
    assert (last.paper_pictures, last.paper_share) == (None, None)
    assert page["repeated"] == [("exact", "cc3m", "sbu", 4321)]
    assert page["overlap"][0] == ("cc3m", [10, 50, 0])
    assert page["reasons"] == [("rows rejected", "no_caption", 30), ("captions dropped", "too_few_words", 7)]


def test_the_page_shows_tables_and_six_plots_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    reported(tmp_path)
    html = write_report(tmp_path).read_text()
    for shown in ("cc3m", "10,000", "no_caption", "Why pictures failed", "Outcomes by source", "Sizes", "Captions", "Latency", "Hosts asked most, ", "4,321"):
        assert shown in html, shown
    assert html.count('src="data:image/png;base64,') == 6
    assert html.count("src=") == 6


def test_a_dataset_that_is_gone_leaves_the_stages_counts_and_says_so(tmp_path: Path) -> None:
    record = reported(tmp_path)
    (tmp_path / "dataset").rename(tmp_path / "elsewhere")
    page = ingest_page(record, tmp_path)
    assert page is not None
    assert page["plots"] == []
    assert page["total"] == 600
    assert "cannot be read from here" in write_report(tmp_path).read_text()


def test_an_older_datasets_tables_without_sizes_and_captions_have_the_other_plots(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    dataset = write_dataset(tmp_path, shards=1)
    path = published.outcome_path(str(tmp_path), "00000")
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["width", "height", "original_width", "original_height", "caption_words"]), path)
    facts = facts_of(str(tmp_path), dataset)
    assert facts.rows == PER_SHARD
    assert facts.stored_side.total == facts.caption_words.total == 0
    assert facts.latency_s.total == PER_SHARD


def test_an_ingest_that_has_not_finished_shows_where_it_is(tmp_path: Path) -> None:
    status = {"state": "stopped", "done": 1234, "total": 5000, "success_percent": 81.5, "eta_s": None, "reason": "found STOP", "updated": "2030-01-01T00:00:00"}
    (tmp_path / "status.json").write_text(json.dumps(status))
    html = write_report(tmp_path).read_text()
    assert "Stopped as of 2030-01-01T00:00:00: 1,234 of 5,000 pictures" in html
    assert "found STOP" in html
