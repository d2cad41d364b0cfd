"""One row of a list as the sources hand it over: a picture's address with its captions, or the reason it cannot be used."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Pair:
    """A picture's URL as the list has it, and its captions in the list's order."""

    url: str
    captions: tuple[str, ...]


@dataclass(frozen=True)
class RejectedRow:
    """A row that is no pair; `row` counts from 1 in the file, `reason` is one of a few fixed words, `text` is what was found."""

    row: int
    reason: str
    text: str


Row = Pair | RejectedRow
TEXT_LIMIT = 300  # characters of a rejected row that are kept


def row_of(number: int, url: object, captions: object) -> Row:
    """A pair when the URL is a non-empty string and the captions are one non-empty string or a list with at least one."""
    if not isinstance(url, str) or not url.strip():
        return RejectedRow(number, "no_url", str(url)[:TEXT_LIMIT])
    texts = [captions] if isinstance(captions, str) else captions if isinstance(captions, list | tuple) else []
    kept = tuple(text for text in texts if isinstance(text, str) and text.strip())
    if not kept:
        return RejectedRow(number, "no_caption", url[:TEXT_LIMIT])
    if not all(_is_unicode(text) for text in (url, *kept)):
        return RejectedRow(number, "not_unicode", repr(url)[:TEXT_LIMIT])
    return Pair(url, kept)


def _is_unicode(text: str) -> bool:
    r"""JSON can spell half a surrogate pair ("\ud83d"), which no file in UTF-8 can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
