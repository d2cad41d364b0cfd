"""What keeps a caption or a row out of the pair table: a filter answers with its reason, or None."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ingest.config import CaptionConfig, ColumnFilter


def empty(caption: str, _limits: CaptionConfig) -> str | None:
    return None if caption else "no_caption"


def words(caption: str, limits: CaptionConfig) -> str | None:
    number = len(caption.split())
    if number < limits.min_words:
        return "too_few_words"
    return "too_many_words" if limits.max_words is not None and number > limits.max_words else None


def characters(caption: str, limits: CaptionConfig) -> str | None:
    if len(caption) < limits.min_characters:
        return "too_few_characters"
    return "too_many_characters" if limits.max_characters is not None and len(caption) > limits.max_characters else None


CAPTION_FILTERS: dict[str, Callable[[str, CaptionConfig], str | None]] = {"empty": empty, "words": words, "characters": characters}
REPEATED = "repeated_caption"  # the one that asks for all lists: see repeated_captions.py


def limits_anything(limits: CaptionConfig) -> bool:
    """Whether a filter above could drop a caption that is not empty; asking them of 14 million rows for nothing takes half a minute."""
    return limits.model_copy(update={"max_repeats": None}) != CaptionConfig()


def of_caption(caption: str, limits: CaptionConfig) -> str | None:
    return next((reason for caption_filter in CAPTION_FILTERS.values() if (reason := caption_filter(caption, limits))), None)


def of_columns(extra: Mapping[str, Any], asked: Sequence[ColumnFilter]) -> str | None:
    """The first filter's reason; `extra` has no nulls (see `present`)."""
    return next((reason for one in asked if (reason := _of_column(extra.get(one.column), one))), None)


def _of_column(value: Any, asked: ColumnFilter) -> str | None:
    if value is None or (value == "" and "" not in (asked.any_of or [])):  # a csv has no other way to say nothing
        return f"{asked.column}_missing" if asked.missing == "drop" else None
    if asked.any_of is not None and _as_text(value) not in asked.any_of:
        return f"{asked.column}_unwanted"
    if asked.min is None and asked.max is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return f"{asked.column}_no_number"
    if asked.min is not None and not number >= asked.min:
        return f"{asked.column}_too_low"
    return f"{asked.column}_too_high" if asked.max is not None and not number <= asked.max else None


def _as_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def present(extra: Mapping[str, Any]) -> dict[str, Any]:
    """The columns that say something: a null or NaN is an absent value in every format of lists."""
    return {name: value for name, value in extra.items() if value is not None and not (isinstance(value, float) and math.isnan(value))}
