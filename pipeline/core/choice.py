"""From a mapping in the YAML to objects out of a plain table: `{itc: {weight: 1.0}}` -> `ImageTextContrastive(weight=1.0)`."""

import difflib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pipeline.core.errors import ConfigError

T = TypeVar("T")


def chosen_from(table: Mapping[str, Callable[..., T]], chosen: Mapping[str, Mapping[str, Any] | None], key: str) -> dict[str, T]:
    """Build `table[name](**options)` for every chosen name; `key` is the configuration key that errors name."""
    built: dict[str, T] = {}
    for name, options in chosen.items():
        if name not in table:
            close = difflib.get_close_matches(name, table, n=1)
            raise ConfigError(f"{key}.{name} is unknown; " + (f"did you mean {close[0]}?" if close else f"known: {', '.join(table)}"))
        try:
            built[name] = table[name](**(options or {}))
        except TypeError as error:
            raise ConfigError(f"{key}.{name}: {error}") from error
    return built
