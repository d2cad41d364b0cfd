"""A filter answers with its reason."""

import math
from typing import Any

import pytest

from ingest import filters
from ingest.config import CaptionConfig, ColumnFilter


@pytest.mark.parametrize(
    ("caption", "limits", "reason"),
    [
        ("a dog", {}, None),
        ("dog", {"min_words": 2}, "too_few_words"),
        ("a dog", {"min_words": 2, "max_words": 2}, None),
        ("a brown dog", {"max_words": 2}, "too_many_words"),
        ("dog", {"min_characters": 4}, "too_few_characters"),
        ("dogs", {"min_characters": 4, "max_characters": 4}, None),
        ("hound", {"max_characters": 4}, "too_many_characters"),
    ],
)
def test_captions_are_dropped_by_words_and_characters(caption: str, limits: dict[str, int], reason: str | None) -> None:
    assert filters.of_caption(caption, CaptionConfig(**limits)) == reason
    assert reason is None or filters.limits_anything(CaptionConfig(**limits))


def test_without_limits_no_filter_needs_to_be_asked() -> None:
    assert not filters.limits_anything(CaptionConfig())
    assert not filters.limits_anything(CaptionConfig(max_repeats=10))


@pytest.mark.parametrize(
    ("value", "asked", "reason"),
    [
        (0.31, {"min": 0.3}, None),
        (0.29, {"min": 0.3}, "score_too_low"),
        ("0.29", {"min": 0.3}, "score_too_low"),
        (0.3, {"min": 0.3, "max": 0.3}, None),
        (0.5, {"max": 0.4}, "score_too_high"),
        ("good", {"max": 0.4}, "score_no_number"),
        ("en", {"any_of": ["en", "de"]}, None),
        ("fr", {"any_of": ["en", "de"]}, "score_unwanted"),
        (1, {"any_of": ["1"]}, None),
        (True, {"any_of": ["true"]}, None),
        (None, {"min": 0.3}, None),
        (None, {"min": 0.3, "missing": "drop"}, "score_missing"),
        (math.nan, {"min": 0.3}, None),
        (math.nan, {"min": 0.3, "missing": "drop"}, "score_missing"),
        ("", {"min": 0.3}, None),
        ("", {"min": 0.3, "missing": "drop"}, "score_missing"),
        ("", {"any_of": ["en", ""], "missing": "drop"}, None),
        (7, {"missing": "drop"}, None),
    ],
)
def test_rows_are_rejected_by_what_a_column_says(value: Any, asked: dict[str, Any], reason: str | None) -> None:
    assert filters.of_columns(filters.present({"score": value}), [ColumnFilter(column="score", **asked)]) == reason


def test_the_first_filter_that_answers_gives_the_reason() -> None:
    asked = [ColumnFilter(column="language", any_of=["en"]), ColumnFilter(column="score", min=1.0)]
    assert filters.of_columns({"language": "de", "score": 0.0}, asked) == "language_unwanted"
