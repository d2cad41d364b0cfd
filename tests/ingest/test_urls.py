"""A URL has one spelling, found quickly or slowly."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.urls import ALREADY_NORMAL, normalise, parse_and_normalise, picture_uid, uid_bytes

PIECES = ["a", "Z", "1", "_", "-", "~", ".", "..", "/", "/.", "//", "?", "#", "%", "%20", "%2f", "%2F", "%41", "%C3%BC", "%c3", "%25", "&", "=", "+", ";", ":"]
PIECES += ["@", "!", "$", "'", "(", ")", "*", ",", "|", "\\", '"', "<", "[", "]", "^", "`", "{", " ", "\t", "\x00", "ü", "中", "\u200b", "e\u0301", "ſ", "K"]
HOSTS = [
    "a.com",
    "A.com",
    "a",
    "a-b_c.d",
    "a.b.",
    ".",
    "a..b",
    "1.2.3.4",
    "127.1",
    "a.1",
    "münchen.de",
    "xn--mnchen-3ya.de",
    "[::1]",
    "a b",
    "u:p@a.com",
    "a.com:80",
]
HOSTS += ["a.com:443", "a.com:8080", "a.com:", "a.com:x", "ａ.com", "-a.com", "", "a%20b"]
urls = st.builds(
    "{}://{}{}{}".format,
    st.sampled_from(["http", "https", "HTTP", "ftp", "http "]),
    st.sampled_from(HOSTS),
    st.sampled_from(["/", "", "?"]),
    st.lists(st.sampled_from(PIECES), max_size=9).map("".join),
)


@pytest.mark.parametrize(
    ("spelling", "normal"),
    [
        ("  HTTP://Example.COM:80/a.jpg#x ", "http://example.com/a.jpg"),
        ("https://example.com:443", "https://example.com/"),
        ("http://example.com:443/", "http://example.com:443/"),
        ("http://example.com:8080/a", "http://example.com:8080/a"),
        ("http://example.com/ü.jpg", "http://example.com/%C3%BC.jpg"),
        ("http://example.com/%c3%bc.jpg", "http://example.com/%C3%BC.jpg"),
        ("http://example.com/%7Eme/%41.jpg", "http://example.com/~me/A.jpg"),
        ("http://example.com/a b.jpg\u3000", "http://example.com/a%20b.jpg"),
        ("http://example.com/a/../b/./c.jpg", "http://example.com/b/c.jpg"),
        ("http://example.com/a?x=1&y=%2B+2", "http://example.com/a?x=1&y=%2B+2"),
        ("http://münchen.de/", "http://xn--mnchen-3ya.de/"),
        ("ftp://example.com/", None),
        ("http://", None),
        ("http://a.com[]@", None),
        ("example.com/a.jpg", None),
        ("", None),
    ],
)
def test_spellings_of_a_url(spelling: str, normal: str | None) -> None:
    assert normalise(spelling) == normal


@settings(max_examples=1500, deadline=None)
@given(urls)
def test_the_quick_way_gives_what_parsing_gives(url: str) -> None:
    assert normalise(url) == parse_and_normalise(url)


@settings(max_examples=120, deadline=None)
@given(st.from_regex(ALREADY_NORMAL, fullmatch=True))
def test_whatever_the_quick_way_lets_through_parsing_leaves_as_it_is(url: str) -> None:
    assert parse_and_normalise(url) == url


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=40))
def test_any_text_is_normalised_or_refused_and_normalising_again_changes_nothing(text: str) -> None:
    for url in (text, f"http://example.com/{text}", f"http://{text}/"):
        once = normalise(url)
        assert once == parse_and_normalise(url)
        assert once is None or normalise(once) == once


def test_most_of_what_lists_hold_takes_the_quick_way() -> None:
    for url in (
        "https://i.pinimg.com/736x/66/01/6c/66016c3ba27c0e04f39e2bd81a934e3e--anita-ekberg-bob-hope.jpg",
        "http://lh6.ggpht.com/-IvRtNLNcG8o/TpFyrudaT6I/AAAAAAAAM6o/_11MuAAKalQ/IMG_3422.JPG?imgmax=800",
        "https://media.gettyimages.com/photos/young-confident-girl-with-jacket-picture-id911787694?s=612x612&w=0",
        "http://static.flickr.com/2723/4385058960_b0f291553e.jpg",
        "https://upload.wikimedia.org/wikipedia/commons/a/a4/Fl%C3%BCgel_(Zirkus).jpg",
    ):
        assert ALREADY_NORMAL.fullmatch(url), url


def test_the_uid_is_the_first_half_of_a_sha256_in_hex() -> None:
    assert picture_uid("http://a.com/") == uid_bytes("http://a.com/").hex() == "e649b13c1c50e7aa93fb24db3d30f3bb"
