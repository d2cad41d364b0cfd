"""Conditions on samples, such as `width >= 256 and 'stock' not in caption.text`: read as an expression, never run as code.

A name is a key of the sample's json (`similarity`, `exif.Make`, `json['clip-score']`), or one of what every sample has: `picture.width`,
`.height`, `.short_side`, `.long_side`, `.aspect`, `.bytes`, `.format`; `caption.text` (the first), `.count`, `.min_words`, `.max_words`,
`.min_characters`, `.max_characters` (over all its captions); `sample.key`, `.source`, `.bytes`.
"""

import ast
import difflib
import io
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from PIL import Image, UnidentifiedImageError

from pipeline.core.errors import ConfigError, DataError
from shards import tar

Path = tuple[str, ...]

DEEPEST = 100  # levels of an expression: each takes some frames of the interpreter's stack, also in workers, where it begins elsewhere

FORMATS = ("JPEG", "PNG", "WEBP")
KNOWN = {
    "picture": ("width", "height", "short_side", "long_side", "aspect", "bytes", "format"),
    "caption": ("text", "count", "min_words", "max_words", "min_characters", "max_characters"),
    "sample": ("key", "source", "bytes"),
}

_COMPARE: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
    ast.In: lambda one, many: one in many, ast.NotIn: lambda one, many: one not in many, ast.Is: operator.is_, ast.IsNot: operator.is_not,
}  # fmt: skip
_ARITHMETIC: dict[type[ast.AST], Callable[[Any, Any], Any]] = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
_UNARY: dict[type[ast.AST], Callable[[Any], Any]] = {ast.Not: operator.not_, ast.USub: operator.neg}
_FUNCTIONS: dict[str, Callable[[Any], Any]] = {"lower": str.lower, "len": len}


class Missing(Exception):
    """The sample has no such value, or null."""


@dataclass(frozen=True)
class SampleFacts:
    """What conditions ask of one sample; looked up when asked."""

    data: memoryview
    group: tar.Group
    source: str
    where: str

    def value(self, path: Path) -> Any:
        """Raises Missing, or DataError when json or picture are damaged."""
        found = getattr(self, path[0])
        for key in path[1:]:
            found = found.get(key) if isinstance(found, dict) else None
        if found is None:
            raise Missing(".".join(path).removeprefix("json."))
        return found

    @cached_property
    def json(self) -> dict[str, Any]:
        return tar.metadata_of(self.data, self.group, self.where)

    @cached_property
    def picture(self) -> dict[str, Any]:
        member = tar.image_member(self.group)
        assert member is not None, "only groups with a picture are indexed"
        try:
            with Image.open(io.BytesIO(self.data[member.data : member.data + member.size]), formats=FORMATS) as image:
                width, height, kind = image.width, image.height, str(image.format).lower()
        except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f"{self.where}: the picture has no header that can be read ({error})") from error
        sides = {"width": width, "height": height, "short_side": min(width, height), "long_side": max(width, height)}
        return sides | {"aspect": width / max(height, 1), "bytes": member.size, "format": kind}

    @cached_property
    def caption(self) -> dict[str, Any]:
        try:
            metadata = self.json
        except DataError:
            metadata = {}
        captions = tar.captions_of(self.data, self.group, metadata)
        words, characters = [len(caption.split()) for caption in captions], [len(caption) for caption in captions]
        if not captions:
            return {"count": 0}
        lengths = {"min_words": min(words), "max_words": max(words), "min_characters": min(characters), "max_characters": max(characters)}
        return {"text": captions[0], "count": len(captions)} | lengths

    @cached_property
    def sample(self) -> dict[str, Any]:
        return {"key": self.group.key, "source": self.source, "bytes": len(self.data)}


class Condition:
    """One expression; a sample that does not meet it gets the reason why."""

    def __init__(self, text: str) -> None:
        """Raises ConfigError when the text is no such expression."""
        self.text = " ".join(text.split())
        try:
            self._tree = ast.parse(self.text, mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise ConfigError(f"--where {self.text!r}: {getattr(error, 'msg', error)}; write it like: width >= 256 and caption.min_words > 2") from None
        if _is_deeper(self._tree, DEEPEST):
            raise ConfigError(f"--where {self.text!r}: nested deeper than {DEEPEST} levels; give parts of it as conditions of their own")
        self.paths = tuple(dict.fromkeys(self._checked(self._tree)))

    def __call__(self, facts: SampleFacts) -> str | None:
        """None when the sample meets it, else the reason to leave it out."""
        try:
            return None if _value(self._tree, facts) else f"not ({self.text})"
        except Missing as missing:
            return f"not ({self.text}): {missing} missing"
        except TypeError:
            return f"not ({self.text}): of another type"
        except ZeroDivisionError:
            return f"not ({self.text}): division by zero"
        except OverflowError:
            return f"not ({self.text}): number too large"
        except DataError:
            return f"not ({self.text}): json or picture damaged"

    def _checked(self, node: ast.AST) -> list[Path]:
        """The paths it asks for; refuses whatever is not in the little language."""
        if (path := _path(node)) is not None:
            if path[0] in KNOWN and (len(path) != 2 or path[1] not in KNOWN[path[0]]):
                of_json = f"; a key of the json is written json['{path[0]}']" if len(path) == 1 else ""
                raise ConfigError(f"--where {self.text!r}: no {'.'.join(path)}; {path[0]} has {', '.join(KNOWN[path[0]])}{of_json}")
            if path == ("json",):
                raise ConfigError(f"--where {self.text!r}: json alone is no value; write json['key']")
            return [path]
        match node:
            case ast.Constant(value=str() | int() | float() | bool() | None):
                return []
            case ast.BoolOp(values=parts) | ast.List(elts=parts) | ast.Tuple(elts=parts):
                return self._all_checked(parts)
            case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
                return self._checked(operand)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
                return self._all_checked([left, right])
            case ast.Compare(left=left, ops=ops, comparators=right) if all(map(self._comparable, ops, right)):
                return self._all_checked([left, *right])
            case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]) if name in _FUNCTIONS:
                return self._checked(argument)
        part = ast.get_source_segment(self.text, node) if isinstance(node, ast.expr) else None
        raise ConfigError(
            f"--where {self.text!r}: {part or self.text} is not understood; there are names, numbers, 'texts', [lists], "
            f"and or not, == != < <= > >= in, is None, + - * /, {', '.join(f'{name}(x)' for name in _FUNCTIONS)}"
        )

    def _all_checked(self, parts: Iterable[ast.AST]) -> list[Path]:
        return [path for part in parts for path in self._checked(part)]

    def _comparable(self, op: ast.cmpop, right: ast.AST) -> bool:
        none = isinstance(right, ast.Constant) and right.value is None
        return isinstance(op, ast.Is | ast.IsNot) == none


def unknown_columns(conditions: Sequence[Condition], jsons: Sequence[dict[str, Any]]) -> str | None:
    """One line about a key of the json that none of the samples looked at has; None when there is none such."""
    for condition in conditions:
        for path in condition.paths:
            if path[0] in KNOWN or any(path[1] in one for one in jsons):
                continue
            known = sorted({key for one in jsons for key in one})
            close = difflib.get_close_matches(path[1], known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"they have {', '.join(known) or 'no json'}"
            facts = ", ".join(f"{root}." for root in KNOWN)
            return f"--where {condition.text!r}: no {path[1]} in the json of the {len(jsons)} samples looked at; {hint} (also {facts} see --help)"
    return None


def _is_deeper(tree: ast.AST, most: int) -> bool:
    """Level by level, without recursion."""
    level = [tree]
    for _ in range(most):
        level = [child for node in level for child in ast.iter_child_nodes(node)]
    return bool(level)


def _path(node: ast.AST) -> Path | None:
    """`picture.width` as ('picture', 'width'), `a.b` and `json['a']['b']` as ('json', 'a', 'b'); None for what is no name."""
    match node:
        case ast.Name(id=name):
            return (name,) if name in KNOWN or name == "json" else ("json", name)
        case ast.Attribute(value=of, attr=name) | ast.Subscript(value=of, slice=ast.Constant(value=str(name))) if (path := _path(of)) is not None:
            return (*path, name)
    return None


def _value(node: ast.AST, facts: SampleFacts) -> Any:
    if (path := _path(node)) is not None:
        return facts.value(path)
    match node:
        case ast.Constant(value=value):
            return value
        case ast.List(elts=parts) | ast.Tuple(elts=parts):
            return [_value(part, facts) for part in parts]
        case ast.BoolOp(op=op, values=parts):
            return _decided(parts, isinstance(op, ast.Or), facts)
        case ast.UnaryOp(op=op, operand=operand):
            return _UNARY[type(op)](_value(operand, facts))
        case ast.BinOp(left=left, op=op, right=right):
            return _calculated(_ARITHMETIC[type(op)], _value(left, facts), _value(right, facts))
        case ast.Call(func=ast.Name(id=name), args=[argument]):
            return _FUNCTIONS[name](_value(argument, facts))
        case ast.Compare(left=left, ops=ops, comparators=comparators):
            return _compared(left, ops, comparators, facts)
    raise AssertionError(ast.dump(node))


def _calculated(operation: Callable[[Any, Any], Any], left: Any, right: Any) -> Any:
    if not (isinstance(left, int | float) and isinstance(right, int | float)):
        raise TypeError("numbers only: a stranger's text times a stranger's number may fill the memory")
    return operation(left, right)


def _decided(parts: Sequence[ast.AST], by: bool, facts: SampleFacts) -> bool:
    """`or` is decided by a true part and `and` by a false one, whatever is missing in the others, as in SQL."""
    missing = None
    for part in parts:
        try:
            if bool(_value(part, facts)) == by:
                return by
        except Missing as error:
            missing = error
    if missing is not None:
        raise missing
    return not by


def _compared(left: ast.AST, ops: Sequence[ast.cmpop], comparators: Sequence[ast.AST], facts: SampleFacts) -> bool:
    """Chains as in Python: `256 <= width < 512`."""
    value = _value_or_none(left, facts) if isinstance(ops[0], ast.Is | ast.IsNot) else _value(left, facts)
    for op, right in zip(ops, comparators, strict=True):
        other = _value(right, facts)
        if not _COMPARE[type(op)](value, other):
            return False
        value = other
    return True


def _value_or_none(node: ast.AST, facts: SampleFacts) -> Any:
    try:
        return _value(node, facts)
    except Missing:
        return None
