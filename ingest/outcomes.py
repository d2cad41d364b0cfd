"""How a row of the pair table can end: every row ends in exactly one of these."""

import contextlib
from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa


DETAIL_LIMIT = 200  # characters


class Outcome(StrEnum):
    """One word a row; the outcome table adds the HTTP status and a sentence of detail."""

    SUCCESS = "success"
    BAD_URL = "bad_url"  # no http or https URL
    BLOCKED_ADDRESS = "blocked_address"  # private, loopback, link-local, metadata, ..., or a port that is not asked
    DNS_FAILED = "dns_failed"
    CONNECTION_FAILED = "connection_failed"
    TLS_FAILED = "tls_failed"
    TIMEOUT = "timeout"
    TOO_MANY_REDIRECTS = "too_many_redirects"
    HTTP_401 = "http_401"
    HTTP_403 = "http_403"
    HTTP_404 = "http_404"
    HTTP_410 = "http_410"
    HTTP_429 = "http_429"
    HTTP_5XX = "http_5xx"
    HTTP_STATUS_OTHER = "http_status_other"
    ROBOTS_TXT = "robots_txt"  # the host's robots.txt forbids asking, or could not be had for an error of the server
    OPTED_OUT = "opted_out"  # an X-Robots-Tag or TDM-Reservation header forbids the use
    BAD_RESPONSE = "bad_response"  # no valid HTTP, or compressed in a way that was not asked for
    TRUNCATED = "truncated"  # fewer bytes than announced, or a picture without its end
    TOO_LARGE = "too_large"  # bytes or pixels
    TOO_SMALL = "too_small"
    TOO_LONG = "too_long"  # the aspect ratio
    BAD_BOXES = "bad_boxes"  # what should be blurred is not known for sure, so nothing is stored
    NOT_AN_IMAGE = "not_an_image"
    DECODE_FAILED = "decode_failed"
    DAMAGED_MEMBER = "damaged_member"  # of a zip or tar the user has: cut off, or with another checksum
    BLOCKED_BY_LIST = "blocked_by_list"  # ingest.blocked names it: not fetched, or not stored
    HELD_OUT = "held_out"  # a benchmark's picture, by its id or its looks
    PURGED = "purged"  # was stored, and taken out later
    UNEXPECTED_ERROR = "unexpected_error"  # a case this code does not know; the traceback is in engine.log


# What a later round asks for again, since the cause was the network's, the server's load or ours on that day. Not 403 and 401: the server understood
# and refused, and asking again is what its operator does not want; not TLS: expired and foreign certificates stay so; not 404, 410 and what the bytes are.
MAY_PASS = frozenset(
    {
        Outcome.TIMEOUT,
        Outcome.CONNECTION_FAILED,
        Outcome.DNS_FAILED,  # resolvers under a crawler's load answer so for names that exist
        Outcome.HTTP_429,
        Outcome.HTTP_5XX,
        Outcome.TRUNCATED,
        Outcome.BAD_RESPONSE,
        Outcome.UNEXPECTED_ERROR,  # a newer version may know the case
    }
)


class Ended(Exception):
    """The way of a row ended before success."""

    def __init__(self, outcome: Outcome, detail: str = "", status: int | None = None) -> None:
        super().__init__(f"{outcome}: {detail}")
        self.outcome, self.detail, self.status = outcome, " ".join(detail.split())[:DETAIL_LIMIT], status


def of_status(status: int) -> Outcome:
    """The outcome of an HTTP status other than 200 and redirects."""
    with contextlib.suppress(ValueError):
        return Outcome(f"http_{status}")
    return Outcome.HTTP_5XX if 500 <= status < 600 else Outcome.HTTP_STATUS_OTHER


def schema() -> "pa.Schema":
    """Of an outcome table; `bytes` are of the body as received, `caption_words` of each caption, `archive` where the picture came from one.

    Sizes in pixels and `phash` are there for successes, `sha256` of the body for whatever was received whole, `published_hash` (match or
    changed) where the list gave a hash.
    """
    import pyarrow as pa

    text, number = pa.string(), pa.int32()
    columns = {"key": text, "uid": text, "url": text, "source": text, "archive": text, "extra": text, "outcome": text}
    columns |= {"http_status": number, "bytes": pa.int64()}
    columns |= {"width": number, "height": number, "original_width": number, "original_height": number, "sha256": text, "phash": text}
    columns |= {"published_hash": text, "attempts": number, "latency_s": pa.float32(), "detail": text, "caption_words": pa.list_(number)}
    return pa.schema(list(columns.items()))


def table(rows: Sequence[dict[str, Any]]) -> "pa.Table":
    """The outcome table of a shard, one row a row of the pair table, in its order."""
    import pyarrow as pa

    return pa.Table.from_pylist([{**row, "caption_words": _caption_words(row)} for row in rows], schema=schema())


def _caption_words(row: dict[str, Any]) -> list[int] | None:
    """Of the row's captions, or as an earlier outcome table had them."""
    return [len(caption.split()) for caption in row["captions"]] if "captions" in row else row.get("caption_words")
