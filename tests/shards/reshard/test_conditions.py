"""Conditions on samples: what they mean, and what is refused."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import ConfigError
from shards import tar
from shards.reshard.conditions import Condition, SampleFacts, unknown_columns
from shards.writer import member_bytes

from ..foreign_tars import jpeg


def facts(metadata: Any, captions: str = "a red dog", picture: bytes | None = None) -> SampleFacts:
    encoded = metadata if isinstance(metadata, bytes) else json.dumps(metadata).encode()
    members = (("jpg", picture or jpeg(1, 48, 32)), ("txt", captions.encode()), ("json", encoded))
    data = memoryview(b"".join(member_bytes(f"k.{suffix}", content, "x") for suffix, content in members))
    return SampleFacts(data, next(tar.groups(data, "x", whole=False)), "list", "x")


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("width >= 256", True),
        ("256 <= width < 300", False),
        ("width / height > 1 and not nsfw", True),
        ("lang in ['en', 'de']", True),
        ("lang not in ['en']", False),
        ("exif.Make == 'Canon'", True),
        ("json['clip-score'] > 0.25", True),
        ("caption.text == 'a red dog' and caption.count == 1", True),
        ("'red' in lower(caption.text)", True),
        ("caption.min_words > 3", False),
        ("picture.width == 48 and picture.short_side == 32 and picture.format == 'jpeg' and picture.aspect == 1.5", True),
        ("sample.key == 'k' and sample.source == 'list' and sample.bytes > 1000", True),
        ("gone is None and width is not None", True),
        ("width > 1000 or len(lang) == 2", True),
        ("gone > 3 or width > 10", True),
        ("-1 < width - 300 * 1 + 1", True),
        ("+".join(["1"] * 90) + " == 90", True),
        (" or ".join(["width == 3"] * 700), False),
    ],
)
def test_a_condition_means_what_it_says(text: str, kept: bool) -> None:
    metadata = {"width": 300, "height": 200, "nsfw": False, "lang": "en", "exif": {"Make": "Canon"}, "clip-score": 0.3}
    assert Condition(text)(facts(metadata)) == (None if kept else f"not ({text})")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("similarity > 0.3", "not (similarity > 0.3): similarity missing"),
        ("exif.Make == 'x'", "not (exif.Make == 'x'): exif.Make missing"),
        ("width > 'a'", "not (width > 'a'): of another type"),
        ("width / zero > 1", "not (width / zero > 1): division by zero"),
        ("exif * width > 1", "not (exif * width > 1): of another type"),
        ("huge / 2 > 1", "not (huge / 2 > 1): number too large"),
        ("gone > 3 and width > 10", "not (gone > 3 and width > 10): gone missing"),
        ("gone > 3 and width > 1000", "not (gone > 3 and width > 1000)"),
    ],
)
def test_what_cannot_be_said_of_a_sample_has_a_reason_of_its_own(text: str, reason: str) -> None:
    assert Condition(text)(facts({"width": 300, "zero": 0, "exif": "{}", "huge": 10**400})) == reason


def test_damaged_json_and_pictures_are_reasons_too() -> None:
    assert Condition("width > 3")(facts(b"{")) == "not (width > 3): json or picture damaged"
    assert Condition("picture.width > 3")(facts({}, picture=b"\xff\xd8 no")) == "not (picture.width > 3): json or picture damaged"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("width = 3", "write it like"),
        ("width > ", "write it like"),
        ("", "write it like"),
        ("picture.widht > 3", "no picture.widht; picture has width"),
        ("caption == 'x'", r"a key of the json is written json\['caption'\]"),
        ("__import__('os').system('true')", "is not understood"),
        ("width ** 9 ** 9", "is not understood"),
        ("[x for x in y]", "is not understood"),
        ("open('x')", "is not understood"),
        ("width.__class__()", "is not understood"),
        ("lambda: 1", "is not understood"),
        ("width is 3", "is not understood"),
        ("json > 3", "json alone"),
        ("(" * 500 + "1" + ")" * 500, "write it like"),
        ("+".join(["x"] * 700) + " > 1", "nested deeper than 100 levels; give parts"),
        ("x" + ".x" * 200 + " > 1", "nested deeper than 100 levels; give parts"),
        ("not " * 200 + "x", "nested deeper than 100 levels; give parts"),
        ("+".join(["x"] * 100_000) + " > 1", "write it like"),
    ],
)
def test_what_is_no_condition_is_refused_in_one_line(text: str, found: str) -> None:
    with pytest.raises(ConfigError, match=rf"^[^\n]*{found}[^\n]*$"):
        Condition(text)


def test_a_column_that_no_sample_has_is_named_with_its_neighbour() -> None:
    jsons = [{"width": 3, "caption": "x"}, {"height": 3}]
    assert unknown_columns([Condition("height > 3"), Condition("picture.width > 3")], jsons) is None
    assert "no widht in the json of the 2 samples looked at; did you mean width?" in str(unknown_columns([Condition("widht > 3")], jsons))
    assert "they have caption, height, width" in str(unknown_columns([Condition("similarity > 3")], jsons))


NUMBERS = {"a": 3, "b": -1.5, "c": 0}


def expressions() -> st.SearchStrategy[str]:
    number = st.sampled_from([*NUMBERS, "1", "2.5"])
    term = st.recursive(number, lambda inner: st.builds("({} {} {})".format, inner, st.sampled_from("+-*"), inner), max_leaves=4)
    compared = st.builds("{} {} {}".format, term, st.sampled_from(["<", "<=", "==", "!=", ">", ">="]), term)
    return st.recursive(compared, lambda inner: st.builds("({} {} (not {}))".format, inner, st.sampled_from(["and", "or"]), inner), max_leaves=5)


@given(expressions())
def test_the_little_language_agrees_with_python(text: str) -> None:
    assert (Condition(text)(facts(NUMBERS)) is None) == bool(eval(text, {"__builtins__": {}}, dict(NUMBERS)))
