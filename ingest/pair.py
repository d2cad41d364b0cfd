"""One row of a list as the sources hand it over: a picture's address with its captions, or the reason it cannot be used."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Member:
    """Where a picture lies in an archive the user has (zip or tar, local or s3://): nothing is downloaded from its URL then.

    `offset` and `size` are of its data as stored, in bytes; `deflated` says that they are to be inflated (zip method 8).
    """

    archive: str
    offset: int
    size: int
    deflated: bool = False


@dataclass(frozen=True)
class Pair:
    """A picture's URL as the list has it, and its captions in the list's order.

    `extra` goes through to the sample's json and to the outcome table, and filters can ask for it: further columns of the list, and what
    names the picture elsewhere (`coco_id`, `flickr_id`).
    """

    url: str
    captions: tuple[str, ...]
    extra: Mapping[str, Any] = field(default_factory=dict)
    member: Member | None = None
    row: int = field(default=0, compare=False)  # counts from 1 in the file, as a rejected row's does; 0: as many as the source has given


@dataclass(frozen=True)
class RejectedRow:
    """A row that is no pair; `row` counts from 1 in the file, `reason` is one of a few fixed words, `text` is what was found."""

    row: int
    reason: str
    text: str


Row = Pair | RejectedRow
TEXT_LIMIT = 300  # characters of a rejected row that are kept


def row_of(number: int, url: object, captions: object, extra: Mapping[str, Any] | None = None, member: Member | None = None) -> Row:
    """A pair when the URL is a non-empty string and the captions are one non-empty string or a list with at least one."""
    if not isinstance(url, str) or not url.strip():
        return RejectedRow(number, "no_url", str(url)[:TEXT_LIMIT])
    texts = (captions,) if isinstance(captions, str) else captions if isinstance(captions, list | tuple) else ()
    kept = tuple([text for text in texts if isinstance(text, str) and text.strip()])
    if not kept:
        return RejectedRow(number, "no_caption", url[:TEXT_LIMIT])
    if not _is_unicode("".join((url, *kept))):
        return RejectedRow(number, "not_unicode", repr(url)[:TEXT_LIMIT])
    return Pair(url, kept, extra or {}, member, number)


def _is_unicode(text: str) -> bool:
    r"""JSON can spell half a surrogate pair ("\ud83d"), which no file in UTF-8 can hold."""
    if text.isascii():  # known without looking
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
