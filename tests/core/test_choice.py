"""From names and options in a mapping to objects out of a table, with the mistakes a user makes named by key."""

from dataclasses import dataclass

import pytest
import yaml

from pipeline.core.choice import chosen_from
from pipeline.core.errors import ConfigError


@dataclass(frozen=True)
class Filter:
    limit: float
    words: tuple[str, ...] = ()
    strict: bool = False


TABLE = {"filter": Filter}


def test_chosen_names_are_built_with_their_options_and_null_means_none() -> None:
    assert chosen_from(TABLE, {"filter": {"limit": 2.0}}, "stage.filters") == {"filter": Filter(2.0)}
    assert chosen_from({"free": dict}, {"free": None}, "x") == {"free": {}}


@pytest.mark.parametrize("text", ["{limit: 1e-1, words: [a], strict: 'false'}", "{limit: '0.1', words: [a], strict: 0}"])
def test_options_hold_what_their_types_say_however_yaml_has_read_them(text: str) -> None:
    built = chosen_from(TABLE, {"filter": yaml.safe_load(text)}, "stage.filters")["filter"]
    assert built == Filter(0.1, ("a",))
    assert [type(value) for value in (built.limit, built.words, built.strict)] == [float, tuple, bool]


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"fliter": {}}, r"stage\.filters\.fliter is unknown; did you mean filter\?"),
        ({"other": {}}, r"stage\.filters\.other is unknown; known: filter"),
        ({"filter": {"limt": 1.0}}, r"stage\.filters\.filter: no option limt; did you mean limit\?"),
        ({"filter": {}}, r"stage\.filters\.filter\.limit is missing"),
        ({"filter": {"limit": "abc"}}, r"stage\.filters\.filter\.limit is 'abc'"),
        ({"filter": {"limit": 1.0, "words": [1]}}, r"stage\.filters\.filter\.words\.0 is 1"),
        ({"filter": {"limit": 1.0, "strict": "flase"}}, r"stage\.filters\.filter\.strict is 'flase'"),
        ({"filter": {"limit": float("nan")}}, r"stage\.filters\.filter\.limit is nan; give it a finite number"),
        ({"filter": {"limit": "-inf"}}, r"stage\.filters\.filter\.limit is -inf; give it a finite number"),
    ],
)
def test_a_mistake_is_one_line_with_its_key(chosen: dict[str, dict[str, object]], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        chosen_from(TABLE, chosen, "stage.filters")
    assert "\n" not in str(caught.value)
