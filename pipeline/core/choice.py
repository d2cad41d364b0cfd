"""From a mapping in the YAML to objects out of a plain table: `{itc: {weight: 1.0}}` -> `ImageTextContrastive(weight=1.0)`."""

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from pipeline.core.errors import ConfigError

T = TypeVar("T")


def chosen_from(table: Mapping[str, Callable[..., T]], chosen: Mapping[str, Mapping[str, Any] | None], key: str) -> dict[str, T]:
    """Build `table[name](**options)` for every chosen name; `key` is the configuration key that errors name."""
    built: dict[str, T] = {}
    for name, options in chosen.items():
        if name not in table:
            raise ConfigError(f"{key}.{name} is unknown; {_hint(name, table)}")
        built[name] = _built(table[name], options or {}, f"{key}.{name}")
    return built


def _built(made_by: Callable[..., T], options: Mapping[str, Any], key: str) -> T:
    """Calls `made_by`; a dataclass is built by pydantic, so that its fields hold what their types say (`1e-1` is text in YAML) within their bounds."""
    if not is_dataclass(made_by):
        try:
            return made_by(**options)
        except TypeError as error:
            raise ConfigError(f"{key}: {error}") from error
    known = [field.name for field in fields(made_by)]
    if unknown := [name for name in options if name not in known]:
        raise ConfigError(f"{key}: no option {unknown[0]}; {_hint(unknown[0], known)}")
    try:
        built = cast(T, TypeAdapter(made_by).validate_python(dict(options)))
    except ValidationError as error:
        first = error.errors()[0]
        option = ".".join([key, *map(str, first["loc"])])
        raise ConfigError(
            f"{option} is missing; give it a value" if first["type"] == "missing" else f"{option} is {first['input']!r}: {first['msg']}"
        ) from error
    for name in known:
        if isinstance(value := getattr(built, name), float) and not math.isfinite(value):
            raise ConfigError(f"{key}.{name} is {value}; give it a finite number")
    return built


def _hint(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
