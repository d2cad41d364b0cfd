"""Configuration: frozen sections, one YAML file (and the one it builds on), then `section.key=value` overrides; every error names the full key."""

import copy
import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from pipeline.core.errors import ConfigError

INPUT_SHOWN = 200  # characters of what was found that an error repeats


class Section(BaseModel):
    """A frozen group of settings; an unknown key is an error. Every field has a description with its unit."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


S = TypeVar("S", bound=Section)


def load(schema: type[S], path: str | Path, overrides: Sequence[str] = ()) -> S:
    """Read a YAML file, apply `section.key=value` overrides in order, and validate.

    A file that begins with `base: other.yaml` (relative to itself) says only what differs: its sections are laid over the other's, key by key.
    So is an override laid over a field of plain keys and values: over what the file says of it, or else over its default.

    Raises:
        ConfigError: one line with the full key, what was found and what would be right.
    """
    values = _read(Path(path))
    for override in overrides:
        _apply_override(schema, values, override)
    return validate(schema, values, origin=str(path))


def from_overrides(schema: type[S], overrides: Sequence[str]) -> S:
    """A section from its defaults and `key=value` overrides, with no file."""
    values: dict[str, Any] = {}
    for override in overrides:
        _apply_override(schema, values, override)
    return validate(schema, values, origin="command line")


def validate(schema: type[S], values: dict[str, Any], origin: str) -> S:
    """Build a section from plain values; errors name `origin` and the full key."""
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")  # a mistyped key is missing, too: its name says more
        raise ConfigError(f"{origin}: {_sentence(schema, first)}") from error


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
    """Every field below `schema` as (full key, default, description).

    Of a field that takes one of several sections, what they have in common comes once, and the rest as `key[type].field`.
    """
    for name, field in schema.model_fields.items():
        key = f"{prefix}{name}"
        sections = _sections_of(field.annotation)
        if len(sections) > 1:
            yield from _reference_of_union(sections, key)
        elif sections:
            yield from reference(sections[0], f"{key}.")
        else:
            default = "(required)" if field.is_required() else repr(field.get_default(call_default_factory=True))
            yield key, default, field.description or ""


def _reference_of_union(sections: list[type[Section]], key: str) -> Iterator[tuple[str, str, str]]:
    entries = [list(reference(section)) for section in sections]
    common = [entry for entry in entries[0] if all(entry in others for others in entries)]
    yield from ((f"{key}.{name}", default, text) for name, default, text in common)
    for section, own in zip(sections, entries, strict=True):
        yield from ((f"{key}[{_tag(section)}].{name}", default, text) for name, default, text in own if (name, default, text) not in common)


def _sections_of(annotation: Any) -> list[type[Section]]:
    """The sections a field can hold: itself, or in a list, an optional or a union."""
    if isinstance(annotation, type) and not get_args(annotation):
        return [annotation] if issubclass(annotation, Section) else []
    return [section for argument in get_args(annotation) for section in _sections_of(argument)]


def _tag(section: type[Section]) -> str:
    """The value of `type` that chooses the section out of a union."""
    return str(get_args(section.model_fields["type"].annotation)[0])


def _read(path: Path, derived: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The values of a file, laid over those of its base; `derived` are the files that build on it."""
    if path.resolve() in [file.resolve() for file in derived]:
        raise ConfigError(f"{path}: builds on itself (base: in {', '.join(map(str, derived))}); take one of these lines out")
    values = _mapping_in(path, f" ({derived[-1]} names it as its base)" if derived else "")
    base = values.pop("base", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise ConfigError(f"{path}: base is {base!r}; name another configuration file, relative to this one")
    return _laid_over(_read(path.parent / base, (*derived, path)), values)


def _mapping_in(path: Path, asked_by: str) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file{asked_by}; the ones we ship are in pipeline/configs/") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a configuration ({error})") from error
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected sections with keys, found {type(values).__name__}")
    return values


def _laid_over(base: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Mappings are merged, everything else is replaced."""
    both = {key: _laid_over(base[key], value) for key, value in values.items() if isinstance(value, dict) and isinstance(base.get(key), dict)}
    return {**base, **values, **both}


def _apply_override(schema: type[Section], values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r}: expected section.key=value")
    *sections, name = key.split(".")
    inner: Any = values
    for at, section in enumerate(sections):
        found = _step_into(inner, section, ".".join(sections[:at]), override)
        if found is None:
            found = inner[int(section) if isinstance(inner, list) else section] = _default_mapping(schema, sections[: at + 1])
        if not isinstance(found, dict | list):
            raise ConfigError(f"override {override!r}: {section} holds a value, not keys")
        inner = found
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not valid YAML") from error
    _step_into(inner, name, ".".join(sections), override)
    inner[int(name) if isinstance(inner, list) else name] = value


def _default_mapping(schema: type[Section], key: Sequence[str]) -> dict[str, Any]:
    """What the field holds by default where that is plain keys and values, as losses do; empty where it is a section, which fills itself in."""
    default, sections = None, [schema]
    for name in key:
        if name.isdecimal():  # of a list, whose sections are those of its elements
            continue
        field = next((section.model_fields[name] for section in sections if name in section.model_fields), None)
        default = field.get_default(call_default_factory=True) if field else None
        sections = _sections_of(field.annotation) if field else []
    return copy.deepcopy(default) if isinstance(default, dict) else {}


def _step_into(values: Any, name: str, where: str, override: str) -> Any:
    """The value under a key or at a number of a list; None when there is none."""
    if not isinstance(values, list):
        return values.get(name)
    if not name.isdecimal() or int(name) >= len(values):
        elements = f"name one of its elements, {where}.0 to {where}.{len(values) - 1}" if values else "give it elements first"
        raise ConfigError(f"override {override!r}: {where} is a list of {len(values)}; {elements}")
    return values[int(name)]


def _sentence(schema: type[Section], error: ErrorDetails) -> str:
    location, known = _resolved(schema, [part for part in error["loc"] if isinstance(part, str | int)])
    key = ".".join(location) or "(whole file)"
    if error["type"] == "extra_forbidden":
        return f"unknown key {key}{_hint(location[-1], known)}"
    if error["type"] == "union_tag_invalid":
        tags = error["ctx"]["expected_tags"].replace("'", "").split(", ")
        return f"{key}.type is {error['ctx']['tag']!r}, which does not exist{_hint(error['ctx']['tag'], tags)}"
    if error["type"] == "union_tag_not_found":
        return f"{key}.type is missing; known: {', '.join(known)}"
    if error["type"] == "missing":
        return f"{key} is missing; give it a value"
    message = error["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ").removeprefix("Input ")
    if not location:
        return message
    if error["type"] == "value_error" and isinstance(error["input"], dict):  # of a section whose keys do not go together, which the message names
        return f"{key}: {message}"
    return f"{key} is {repr(error['input'])[:INPUT_SHOWN]}: {message}"


def _hint(found: str, known: list[str]) -> str:
    close = difflib.get_close_matches(found, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known here: {', '.join(known)}"


def _resolved(schema: type[Section], location: Sequence[str | int]) -> tuple[list[str], list[str]]:
    """The location as the user writes it, without the tag that pydantic puts after the number of a list's element, and what is known there."""
    key, sections = list[str](), [schema]
    for at, part in enumerate(location):
        if len(sections) > 1 and isinstance(part, str):
            sections = [section for section in sections if _tag(section) == part]
            continue
        key.append(str(part))
        if isinstance(part, str) and at < len(location) - 1:
            field = sections[0].model_fields.get(part) if sections else None
            sections = _sections_of(field.annotation) if field else []
    known = [_tag(section) for section in sections] if len(sections) > 1 else [name for section in sections for name in section.model_fields]
    return key, known
