"""From names and options in a mapping to objects out of a table, with the mistakes a user makes named by key."""

from dataclasses import dataclass

import pytest

from pipeline.core.choice import chosen_from
from pipeline.core.errors import ConfigError


@dataclass(frozen=True)
class Filter:
    limit: float
    words: tuple[str, ...] = ()


TABLE = {"filter": Filter}


def test_chosen_names_are_built_with_their_options_and_null_means_none() -> None:
    assert chosen_from(TABLE, {"filter": {"limit": 2.0}}, "stage.filters") == {"filter": Filter(2.0)}
    assert chosen_from({"free": dict}, {"free": None}, "x") == {"free": {}}


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"fliter": {}}, r"stage\.filters\.fliter is unknown; did you mean filter\?"),
        ({"other": {}}, r"stage\.filters\.other is unknown; known: filter"),
        ({"filter": {"limt": 1.0}}, r"stage\.filters\.filter: no option limt; did you mean limit\?"),
        ({"filter": {}}, r"stage\.filters\.filter\.limit is missing"),
        ({"filter": {"limit": "abc"}}, r"stage\.filters\.filter\.limit is 'abc'"),
        ({"filter": {"limit": 1.0, "words": [1]}}, r"stage\.filters\.filter\.words\.0 is 1"),
    ],
)
def test_a_mistake_is_one_line_with_its_key(chosen: dict[str, dict[str, object]], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        chosen_from(TABLE, chosen, "stage.filters")
    assert "\n" not in str(caught.value)
