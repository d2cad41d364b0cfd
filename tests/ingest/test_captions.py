"""A caption has one spelling."""

import re
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.captions import normalise


@pytest.mark.parametrize(
    ("spelling", "normal"),
    [
        ("a dog", "a dog"),
        ("  a\tdog \n", "a dog"),
        ("a\x00dog\x07", "a dog"),
        ("cafe\u0301", "café"),
        ("a\u00a0\u2003dog\u0085", "a dog"),
        ("<PERSON> and a dog", "<PERSON> and a dog"),
        ("A Dog, isn't it?", "A Dog, isn't it?"),
        (" \x00\u3000", ""),
        ("", ""),
    ],
)
def test_spellings_of_a_caption(spelling: str, normal: str) -> None:
    assert normalise(spelling) == normal


@settings(max_examples=500, deadline=None)
@given(st.text(alphabet=st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("a \t\x00\u0301\u00a0")), max_size=20))
def test_the_quick_way_gives_what_the_rule_says_and_doing_it_again_changes_nothing(text: str) -> None:
    plain = re.sub(r"\s+", " ", "".join(" " if unicodedata.category(c) == "Cc" else c for c in unicodedata.normalize("NFC", text))).strip()
    assert normalise(text) == plain
    assert normalise(plain) == plain
