"""Configuration: frozen sections, one YAML file, then `section.key=value` overrides; every error names the full key."""

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from pipeline.core.errors import ConfigError


class Section(BaseModel):
    """A frozen group of settings; an unknown key is an error. Every field has a description with its unit."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


S = TypeVar("S", bound=Section)


def load(schema: type[S], path: str | Path, overrides: Sequence[str] = ()) -> S:
    """Read a YAML file, apply `section.key=value` overrides in order, and validate.

    Raises:
        ConfigError: one line with the full key, what was found and what would be right.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file; the ones we ship are in pipeline/configs/") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a configuration ({error})") from error
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected sections with keys, found {type(values).__name__}")
    for override in overrides:
        _apply_override(values, override)
    return validate(schema, values, origin=str(path))


def from_overrides(schema: type[S], overrides: Sequence[str]) -> S:
    """A section from its defaults and `key=value` overrides, with no file."""
    values: dict[str, Any] = {}
    for override in overrides:
        _apply_override(values, override)
    return validate(schema, values, origin="command line")


def validate(schema: type[S], values: dict[str, Any], origin: str) -> S:
    """Build a section from plain values; errors name `origin` and the full key."""
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{origin}: {_sentence(schema, error.errors()[0])}") from error


def dump(section: Section) -> str:
    """The resolved configuration as YAML, every default spelled out."""
    text: str = yaml.safe_dump(section.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    return text


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values as {"section.key": value}."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) and value else {f"{prefix}{name}": value}
    return flat


def reference(schema: type[Section], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Every field below `schema` as (full key, default, description)."""
    for name, field in schema.model_fields.items():
        key = f"{prefix}{name}"
        section = _section_of(field.annotation)
        if section is not None:
            yield from reference(section, f"{key}.")
        else:
            default = "(required)" if field.is_required() else repr(field.get_default(call_default_factory=True))
            yield key, default, field.description or ""


def _section_of(annotation: Any) -> type[Section] | None:
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, Section):
            return candidate
    return None


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r}: expected section.key=value")
    *sections, name = key.split(".")
    for section in sections:
        inner = values.setdefault(section, {})
        if inner is None:
            inner = values[section] = {}
        if not isinstance(inner, dict):
            raise ConfigError(f"override {override!r}: {section} holds a value, not keys")
        values = inner
    try:
        values[name] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not valid YAML") from error


def _sentence(schema: type[Section], error: ErrorDetails) -> str:
    location = [part for part in error["loc"] if isinstance(part, str | int)]
    key = ".".join(str(part) for part in location) or "(whole file)"
    if error["type"] == "extra_forbidden":
        known = _keys_beside(schema, location)
        close = difflib.get_close_matches(str(location[-1]), known, n=1)
        hint = f"; did you mean {close[0]}?" if close else f"; known keys here: {', '.join(known)}"
        return f"unknown key {key}{hint}"
    if error["type"] == "missing":
        return f"{key} is missing; give it a value"
    message = error["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return f"{key} is {error['input']!r}: {message}" if location else message


def _keys_beside(schema: type[Section], location: list[str | int]) -> list[str]:
    for part in location[:-1]:
        field = schema.model_fields.get(str(part))
        section = _section_of(field.annotation) if field else None
        if section is None:
            return []
        schema = section
    return list(schema.model_fields)
