"""X-Robots-Tag and TDM-Reservation: the headers by which a server says what a picture may not be used for."""

from collections.abc import Collection, Iterable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

DIRECTIVES_WITH_VALUE = ("max-snippet", "max-image-preview", "max-video-preview", "unavailable_after")


def opted_out(header_values: Iterable[str], user_agent: str, directives: Collection[str], now: datetime | None = None) -> str | None:
    """The first directive that forbids the use, or None.

    A value is `noai, noindex`, or with a crawler's name before it, `otherbot: noai`: then it binds that crawler alone.
    """
    product = user_agent.partition("/")[0].strip().lower()
    for value in header_values:
        addressee = product
        parts = value.lower().split(",")
        for position, part in enumerate(parts):
            name, colon, rest = (text.strip() for text in part.partition(":"))
            if colon and name not in DIRECTIVES_WITH_VALUE and " " not in name:  # "25 jun 2030 15:00:00" is the rest of a date, not a crawler
                addressee = name
                name, _, rest = (text.strip() for text in rest.partition(":"))
            if name not in directives or addressee not in (product, "*"):
                continue
            if name != "unavailable_after" or _has_passed([rest, *parts[position + 1 : position + 2]], now):
                return name
    return None


def reserved(header_values: Iterable[str]) -> bool:
    """Whether the rights to mine text and data are reserved (TDM-Reservation: 1)."""
    return any(value.strip() == "1" for value in header_values)


def _has_passed(texts: list[str], now: datetime | None) -> bool:
    """Whether the date at the start of `texts` is over; `Friday, 25-Jun-2010 15:00:00 GMT` has a comma of its own, hence two. No date has not passed."""
    for text in (texts[0], ",".join(texts)):
        if date := _date(text):
            return (date if date.tzinfo else date.replace(tzinfo=UTC)) < (now or datetime.now(UTC))
    return False


def _date(text: str) -> datetime | None:
    for parse in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            return parse(text.strip().upper())
        except (ValueError, OverflowError):
            continue
    return None
