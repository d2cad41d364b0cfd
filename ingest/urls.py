"""The one spelling of a URL, and the id a picture has by it: two spellings of one address are one picture."""

import hashlib
import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

if TYPE_CHECKING:
    from yarl import URL

HOST = re.compile(r"[a-z0-9._:%-]+")  # after IDNA encoding; the colon is of IPv6 addresses, the percent sign of their zones
UID_BYTES = 16
_ESCAPED = "%(?:20|[89A-F][0-9A-F])"
# What is spelled so already is most of a list, and ten times cheaper to recognise than to parse. A name that ends in a letter is no IP address,
# and a segment that does not begin with a dot is neither `.` nor `..`. Possessive (`++`, `*+`): a long address that fits nowhere fails at once.
ALREADY_NORMAL = re.compile(
    r"https?://[a-z0-9._-]*[a-z]" rf"(?:/(?!\.)(?:[\w!$&'()*+,;=:@~.-]++|{_ESCAPED})*+)++" rf"(?:\?(?:[\w!$&'()*+,;=:@~./?-]++|{_ESCAPED})++)?",
    re.ASCII,
)


def normalise(url: str) -> str | None:
    """The one spelling of a URL (scheme and host in lower case, default port and fragment gone, percent-encoded), or None when it is none."""
    stripped = url.strip()
    return stripped if ALREADY_NORMAL.fullmatch(stripped) else parse_and_normalise(stripped)


def parse_and_normalise(url: str) -> str | None:
    """The definition of `normalise`, for any spelling."""
    try:
        parsed = parse(url.strip()).with_fragment(None)
        if parsed.scheme not in ("http", "https") or not HOST.fullmatch(parsed.raw_host or ""):
            return None
        parts = urlsplit(str(parsed.with_port(None) if parsed.is_default_port() else parsed))
        return urlunsplit(parts._replace(path=parts.path or "/"))
    except (ValueError, TypeError):
        return None


def parse(url: str) -> "URL":
    """Raises ValueError when it is no URL, TypeError when it is no string."""
    from yarl import URL

    try:
        return URL(url)
    except IndexError as error:  # brackets before an @ with nothing behind it
        raise ValueError(f"no host: {url[:200]}") from error


def uid_bytes(url: str) -> bytes:
    """The first half of the SHA-256 of a normalised URL: the same picture has it in every list, order and machine."""
    return hashlib.sha256(url.encode()).digest()[:UID_BYTES]


def picture_uid(url: str) -> str:
    """The same as text, 32 hex digits."""
    return uid_bytes(url).hex()
