"""Whom an X-Robots-Tag binds, and to what."""

import pytest

from ingest.opt_out import opted_out

DIRECTIVES = ["noai", "noimageai", "noindex", "noimageindex", "none"]


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
    ],
)
def test_directives(values: list[str], found: str | None) -> None:
    assert opted_out(values, "albef-ingest/0.1 (+https://example.org)", DIRECTIVES) == found
