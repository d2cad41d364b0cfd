"""From a mapping in the YAML to objects out of a plain table: `{itc: {weight: 1.0}}` -> `ImageTextContrastive(weight=1.0)`."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from pipeline.core.errors import ConfigError

T = TypeVar("T")


def chosen_from(table: Mapping[str, Callable[..., T]], chosen: Mapping[str, Mapping[str, Any] | None], key: str) -> dict[str, T]:
    """Build `table[name](**options)` for every chosen name; `key` is the configuration key that errors name."""
    built: dict[str, T] = {}
    for name, options in chosen.items():
        if name not in table:
            close = difflib.get_close_matches(name, table, n=1)
            raise ConfigError(f"{key}.{name} is unknown; " + (f"did you mean {close[0]}?" if close else f"known: {', '.join(table)}"))
        built[name] = _built(table[name], options or {}, f"{key}.{name}")
    return built


def _built(made_by: Callable[..., T], options: Mapping[str, Any], key: str) -> T:
    """Calls `made_by`; of a dataclass the types of the options are checked, too."""
    try:
        if is_dataclass(made_by):
            TypeAdapter(made_by).validate_python(dict(options))
        return made_by(**options)
    except TypeError as error:
        raise ConfigError(f"{key}: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{'.'.join([key, *map(str, first['loc'])])} is {first['input']!r}: {first['msg']}") from error
