"""One row of a list as the sources hand it over: a picture's address with its captions, or the reason it cannot be used."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Member:
    """Where a picture lies in an archive the user has (zip or tar, local or s3://): nothing is downloaded from its URL then.

    `size` is of its data as stored, in bytes; `deflated` says that they are to be inflated (zip method 8). `crc32` is what a zip says of the
    inflated data, None in a tar. `offset` is where the data begin in a tar, and where the local header before them begins in a zip, since only
    that header tells how long it is.
    """

    archive: str
    offset: int
    size: int
    deflated: bool = False
    crc32: int | None = None


@dataclass(slots=True)
class Pair:
    """A picture's URL as the list has it, and its captions in the list's order.

    `extra` goes through to the sample's json and to the outcome table, and filters can ask for it: further columns of the list, and what
    names the picture elsewhere (`coco_id`, `flickr_id`); its values are what JSON can hold. Nobody changes a pair, but with 14 million of them
    it is not frozen: that would take four times as long to make.
    """

    url: str
    captions: tuple[str, ...]
    extra: Mapping[str, Any] = field(default_factory=dict)
    member: Member | None = None
    row: int = field(default=0, compare=False)  # counts from 1 in the file, as a rejected row's does


@dataclass(frozen=True)
class RejectedRow:
    """A row that is no pair; `row` counts from 1 in the file, `reason` is one of a few fixed words, `text` is what was found."""

    row: int
    reason: str
    text: str


Row = Pair | RejectedRow
NO_EXTRA: Mapping[str, Any] = {}
TEXT_LIMIT = 300  # characters of a rejected row that are kept


def row_of(number: int, url: object, captions: object, extra: Mapping[str, Any] = NO_EXTRA, member: Member | None = None) -> Row:
    """A pair when the URL is a non-empty string and the captions are one non-empty string or a list with at least one."""
    if not isinstance(url, str) or not url.strip():
        return RejectedRow(number, "no_url", str(url)[:TEXT_LIMIT])
    texts = (captions,) if isinstance(captions, str) else captions if isinstance(captions, list | tuple) else ()
    kept = tuple([text for text in texts if isinstance(text, str) and text.strip()])
    if not kept:
        return RejectedRow(number, "no_caption", url[:TEXT_LIMIT])
    for text in (url, *kept):
        if not (text.isascii() or _is_unicode(text)):
            return RejectedRow(number, "not_unicode", repr(url)[:TEXT_LIMIT])
    if extra and not _is_unicode(json.dumps(extra, ensure_ascii=False)):
        return RejectedRow(number, "not_unicode", repr(extra)[:TEXT_LIMIT])
    return Pair(url, kept, extra, member, number)


def _is_unicode(text: str) -> bool:
    r"""JSON can spell half a surrogate pair ("\ud83d"), which no file in UTF-8 can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
