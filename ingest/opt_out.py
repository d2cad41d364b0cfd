"""X-Robots-Tag: the header by which a server says what a picture may not be used for."""

from collections.abc import Collection, Iterable

DIRECTIVES_WITH_VALUE = ("max-snippet", "max-image-preview", "max-video-preview", "unavailable_after")


def opted_out(header_values: Iterable[str], user_agent: str, directives: Collection[str]) -> str | None:
    """The first directive that forbids the use, or None.

    A value is `noai, noindex`, or with a crawler's name before it, `otherbot: noai`: then it binds that crawler alone.
    """
    product = user_agent.partition("/")[0].strip().lower()
    for value in header_values:
        addressee = product
        for part in value.lower().split(","):
            name, colon, rest = (text.strip() for text in part.partition(":"))
            if colon and name not in DIRECTIVES_WITH_VALUE:
                addressee, name = name, rest
            if name in directives and addressee in (product, "*"):
                return name
    return None
