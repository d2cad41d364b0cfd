"""What a log line and the report of a run that ended say of skipped steps."""

import logging
from pathlib import Path

import pytest

from training.watch.non_finite import IllMicroBatch, IllSample, SkippedStep
from training.watch.skipped_steps import NAMED, SkippedSteps, line, summary


def skipped(step: int, rank: int, *keys: str) -> SkippedStep:
    return SkippedStep(step, [IllMicroBatch(rank, 0, {"itc": "nan"}, [IllSample(key, ["student's image states"]) for key in keys], True, [])])


def test_what_recurs_comes_first_in_the_line_a_run_ends_with() -> None:
    records = [skipped(5, 1, "a", "b"), skipped(6, 2, "a"), SkippedStep(7, [], [], ["text"])]
    assert summary(records) == (
        "3 steps, 5 to 7, skipped for a non-finite loss or gradient: "
        "loss/itc in 2, sample a in 2, rank 1 in 1, sample b in 1, rank 2 in 1, gradient of text in 1"
    )


def test_a_line_names_a_few_and_counts_the_rest() -> None:
    said = line(skipped(5, 1, *[f"k{number}" for number in range(NAMED + 56)]))
    assert "sample k7 on rank 1 (its student's image states are not finite)" in said
    assert "k8" not in said
    assert said.endswith("; 56 samples more")


def test_only_the_last_ones_are_kept_for_the_report(tmp_path: Path) -> None:
    records = SkippedSteps(tmp_path, 0, keep=2)
    for step in (1, 5, 6):
        records.add(skipped(step, 0, "a"))
    assert records.report().startswith("2 steps, 5 to 6, skipped")
    assert len((tmp_path / "skipped_steps.jsonl").read_text().splitlines()) == 3
    assert "step 1 " not in (tmp_path / "skipped_steps.md").read_text()


def test_what_cannot_be_written_does_not_end_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "train").write_text("a file in place of the folder")
    with caplog.at_level(logging.WARNING):
        records = SkippedSteps(tmp_path / "train", 0, keep=2)
        records.add(skipped(1, 0, "a"))
        assert "sample a on rank 0" in caplog.text
        assert "skipped_steps.jsonl cannot be written" in caplog.text
        assert "step 1 skipped" in records.report()


def test_a_step_that_is_finite_when_computed_again_says_so() -> None:
    assert line(SkippedStep(9, [])) == "step 9 skipped: a loss or gradient was not finite, and everything is when computed again"
