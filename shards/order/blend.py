"""What a run draws from: one dataset, or several with their weights, blends within blends."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from pipeline.core.errors import ConfigError

SMALLEST_SHARE = Fraction(1, 2**20)  # a finer one would be rounded, at last to nothing, so that its dataset would never be drawn

_KEYS_WITHIN = {"blend", "weight"}
_KEYS = _KEYS_WITHIN | {"dataset", "name", "manifest"}


@dataclass(frozen=True)
class Source:
    """A dataset of a blend: its name in logs and state, its folder, its share of the items drawn, and the manifest it is pinned to."""

    name: str
    folder: str
    share: Fraction
    manifest: int | None = None


def parse_blend(value: str | dict[str, Any]) -> list[Source]:
    """The sources of `FOLDER`, or of `{blend: [{dataset: FOLDER, weight: 3}, {blend: [...], weight: 1}]}`; the shares of nested blends are multiplied.

    Raises:
        ConfigError: one line with the place in the blend, what was found and what would be right.
    """
    if isinstance(value, str) and value.strip():
        return [Source(_name_of(value), value, Fraction(1))]
    sources = _sources_of(value, Fraction(1), "")
    names = [source.name for source in sources]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"two datasets of the blend are called {twice[0]!r}; give one of them another `name`")
    for source in sources:
        if source.share < SMALLEST_SHARE:
            found = f"its share of the items drawn would be {float(source.share):.3g}, the smallest that counts is {SMALLEST_SHARE}"
            raise ConfigError(f"{source.name}: {found}; raise its weight, or take it out of the blend")
    return sources


def _sources_of(value: str | dict[str, Any], share: Fraction, where: str) -> list[Source]:
    parts = value.get("blend") if isinstance(value, dict) else None
    if not isinstance(parts, list) or not parts:
        raise ConfigError(f"{where or 'dataset'}: expected a folder, or blend: [...] with a dataset or blend and its weight in each, found {value!r}")
    if unknown := sorted(map(repr, set(value) - (_KEYS_WITHIN if where else {"blend"}))):
        allowed = "in a blend within a blend go blend and weight" if where else "at the top goes nothing but blend"
        raise ConfigError(f"{where or 'dataset'}: unknown key {', '.join(unknown)}; {allowed}")
    places = [f"{where}{'.' if where else ''}blend.{number}" for number in range(len(parts))]
    weights = [_weight_of(part, place) for part, place in zip(parts, places, strict=True)]
    found: list[Source] = []
    for part, weight, place in zip(parts, weights, places, strict=True):
        own = share * weight / sum(weights)
        if "blend" in part:
            found += _sources_of(part, own, place)
        else:
            found.append(Source(str(part.get("name") or _name_of(part["dataset"])), part["dataset"], own, part.get("manifest")))
    return found


def _weight_of(part: Any, where: str) -> Fraction:
    if not isinstance(part, dict) or set(part) - _KEYS or ("dataset" in part) == ("blend" in part):
        raise ConfigError(f"{where} is {part!r}: expected either dataset or blend, with weight and, for a dataset, name and manifest")
    if "dataset" in part and not (isinstance(part["dataset"], str) and part["dataset"].strip()):
        raise ConfigError(f"{where} is {part!r}: expected a folder as dataset")
    manifest = part.get("manifest")
    if manifest is not None and (isinstance(manifest, bool) or not isinstance(manifest, int) or manifest < 1):
        raise ConfigError(f"{where}.manifest is {manifest!r}: expected the number of a manifest, 1 or more")
    weight = part.get("weight")
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
        raise ConfigError(f"{where}.weight is {weight!r}: expected a number above 0, the share of the items drawn beside its neighbours' weights")
    return Fraction(str(weight))


def _name_of(folder: str) -> str:
    return folder.rstrip("/").rsplit("/", 1)[-1]
