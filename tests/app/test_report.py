"""The report: whatever has run is shown, whatever has not says so, and nothing in a caption can become markup."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.app.figures import write_figures
from pipeline.app.report import write_report
from pipeline.core.errors import DataError
from pipeline.core.run_directory import RunDirectory

INGESTED: dict[str, Any] = {
    "outcomes": {"success": 970, "http_404": 30},
    "rows": {"rows": 4000, "pictures": 1000, "merged": 3000, "captions": 4000, "rejected": {"empty_caption": 2}},
    "shards": 2, "samples": 970, "captions": 3880,
}  # fmt: skip


def trained_step(step: int) -> dict[str, float]:
    losses = {"loss/itc": 5.0 / step, "loss/itm": 0.6, "loss/mlm": 4.0 / step, "loss/total": 9.0 / step + 0.6}
    speed = {"pairs": 64 * step, "pairs_per_s": 128.0, "data_wait_s": 0.05}
    return {"step": step, **losses, **speed, "lr": 1e-3, "alpha": 0.4, "temperature": 0.07, "grad_norm": 2.0, "skipped_steps": 0.0}


def results(caption: str) -> tuple[dict[str, Any], dict[str, Any]]:
    metrics = {f"{way}/{side}_recall@{k}": 40.0 + k for way in ("itc", "reranked") for side in ("text", "image") for k in (1, 5, 10)}
    metrics |= {"itm_loss": 0.51, "itm_prior_entropy": 0.6365, "itm_accuracy": 75.0}
    retrieval = {"metrics": metrics, "counts": {"images": 250, "captions": 1250}, "reference": {}, "options": {"k_test": 16, "split": "test"}}
    contrast = {"metrics": {"swap_colour/itc": 55.5, "swap_colour/itm": 66.6}, "counts": {"swap_colour/pairs": 250}, "reference": {}, "options": {}}
    reference = {"symbolic oracle": {"text_recall@1": 99.25}}
    gallery = {"texts": [{"caption": caption, "image": "a.jpg", "answers": [{"image": "a.jpg", "right": True}]}], "images": [], "thumbnails": {"a.jpg": "AAAA"}}
    return {"checkpoint": "step-7", "tasks": {"retrieval": retrieval, "contrast": contrast}, "reference": reference}, gallery


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path)
    directory.finish("ingest", "x", INGESTED, seconds=12)
    (directory.folder("train") / "metrics.jsonl").write_text("".join(json.dumps(trained_step(step)) + "\n" for step in range(1, 41)))
    scores, gallery = results("<script>alert('caption')</script>")
    (directory.folder("eval") / "results.json").write_text(json.dumps(scores))
    (directory.folder("eval") / "gallery.json").write_text(json.dumps(gallery))
    return directory


def test_a_run_that_has_not_started_says_so_for_every_stage(tmp_path: Path) -> None:
    assert write_report(tmp_path).read_text().count("This stage has not run.") == 4


def test_outcomes_recalls_references_and_contrast_are_in_the_tables(run: RunDirectory) -> None:
    html = write_report(run.path).read_text()
    for shown in (
        "http_404",
        "97.00 %",
        "empty_caption",
        "ITM re-ranking of the best 16",
        "41.0",
        "symbolic oracle",
        "99.2",
        "swap colour",
        "66.6",
        "0.510",
        "128 pairs/s",
    ):
        assert shown in html, shown
    assert "not run" not in html


def test_waiting_for_data_is_a_share_of_the_time_of_steps(run: RunDirectory) -> None:
    assert "10.0 % of the time spent waiting for data" in write_report(run.path).read_text()  # 0.05 s of 64 / 128 s a step


def test_a_caption_cannot_become_markup(run: RunDirectory) -> None:
    html = write_report(run.path).read_text()
    assert "<script" not in html
    assert "&lt;script&gt;" in html


def test_the_report_loads_nothing_from_elsewhere(run: RunDirectory) -> None:
    html = write_report(run.path).read_text()
    assert "http:" not in html.replace("http_404", "")
    assert "src=" in html
    assert html.count("src=") == html.count('src="data:image/')


def test_figures_are_rows_with_command_and_machine(run: RunDirectory, tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    write_figures(run.path, str(path), "tiny", "albef run tiny.yaml")
    record = json.loads(path.read_text())
    assert record["command"] == "albef run tiny.yaml"
    assert record["machine"]["cores"] >= 1
    assert {"case": "ingest/outcomes/success", "unit": "count", "ours": 970, "peer": None, "peer_name": None, "ratio": None, "note": ""} in record["rows"]


def test_a_run_without_a_finished_stage_has_no_figures(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no finished stage"):
        write_figures(tmp_path, str(tmp_path / "figures.json"), "tiny", "x")


def test_the_quarantine_names_shards_and_what_was_wrong(run: RunDirectory) -> None:
    entry = {"sample": 7, "samples": 1, "key": "k", "reason": "x", "epoch": 0, "position": 1, "replaced": 3}
    record = {
        "samples": 1234, "of": 100_000, "budget": 0.02, "entries": [entry, entry],
        "shards": [{"shard": f"s3://b/{number:05d}.tar", "samples": 60, "reason": "checksum <differs>"} for number in range(25)],
    }  # fmt: skip
    (run.folder("train") / "quarantine.json").write_text(json.dumps(record))
    html = write_report(run.path).read_text()
    for shown in ("1,234 of 100,000 samples", "1.2 %", "allows 2 %", "6 times", "s3://b/00019.tar", "checksum &lt;differs&gt;", "And 5 shards more."):
        assert shown in html, shown
    assert "s3://b/00020.tar" not in html
    (run.folder("train") / "quarantine.json").write_text(json.dumps({**record, "samples": 0, "shards": [], "entries": []}))
    assert "the quarantine is empty" in write_report(run.path).read_text()
