"""Whom an X-Robots-Tag binds, and to what."""

from datetime import UTC, datetime

import pytest

from ingest.config import FetchConfig
from ingest.opt_out import opted_out, reserved

DIRECTIVES = FetchConfig().opt_out_directives
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([], None),
        (["noai"], "noai"),
        (["index, NoImageAI"], "noimageai"),
        (["none"], "none"),
        (["max-image-preview: large, noai"], "noai"),
        (["max-image-preview: large"], None),
        (["otherbot: noai"], None),
        (["otherbot: noindex, noai"], None),
        (["albef-ingest: noai"], "noai"),
        (["*: noai"], "noai"),
        (["all", "noindex"], "noindex"),
        (["otherbot: noai", "noimageindex"], "noimageindex"),
        (["", ":", "::,,"], None),
        (["noml"], "noml"),
        (["nofollow, nosnippet, noarchive"], None),
        (["ALBEF-Ingest : NOML"], "noml"),
        (["albef-ingest: max-image-preview: large, noai"], "noai"),
        (["otherbot: max-image-preview: large, noai"], None),
        (["otherbot: noai, albef-ingest: noindex"], "noindex"),
        (["unavailable_after: 25 Jun 2025 15:00:00 PST"], "unavailable_after"),
        (["unavailable_after: 25 Jun 2027 15:00:00 PST"], None),
        (["unavailable_after: Wednesday, 25-Jun-2025 15:00:00 GMT"], "unavailable_after"),
        (["unavailable_after: Friday, 25-Jun-2027 15:00:00 GMT, noai"], "noai"),
        (["unavailable_after: Friday, 25-Jun-2027 15:00:00 GMT"], None),
        (["unavailable_after: 2025-06-25T15:00:00Z"], "unavailable_after"),
        (["unavailable_after: 2025-06-25"], "unavailable_after"),
        (["unavailable_after: 2027-06-25"], None),
        (["otherbot: unavailable_after: 2025-06-25"], None),
        (["albef-ingest: unavailable_after: 2025-06-25"], "unavailable_after"),
        (["unavailable_after: when the cows come home"], None),
        (["unavailable_after"], None),
        (["unavailable_after: 0001-01-01T00:00:00+14:00"], "unavailable_after"),
    ],
)
def test_directives(values: list[str], found: str | None) -> None:
    assert opted_out(values, "albef-ingest/0.1 (+https://example.org)", DIRECTIVES, NOW) == found


def test_only_directives_that_are_listed_count() -> None:
    assert opted_out(["noindex, noai"], "albef-ingest", ["noai"]) == "noai"
    assert opted_out(["noindex", "unavailable_after: 2001-01-01"], "albef-ingest", ["noai"]) is None


@pytest.mark.parametrize(("values", "found"), [([], False), (["0"], False), (["1"], True), ([" 1 "], True), (["0", "1"], True), (["true"], False)])
def test_rights_are_reserved_by_a_one(values: list[str], found: bool) -> None:
    assert reserved(values) is found
