"""Walk the members of a tar in memory and group them into samples by WebDataset's rule.

Python's tarfile takes a damaged header for the end of the archive and says nothing; this walk names it.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from pipeline.core.errors import DataError

BLOCK = 512
IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
SUFFIXES = (*IMAGE_SUFFIXES, "txt", "json")  # nothing else is ever looked into; above all, nothing is unpickled

_KEY_AND_SUFFIX = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")
_ZERO_BLOCK = bytes(BLOCK)
_PAX_PATH = re.compile(rb"(?:^|\n)\d+ path=([^\n]*)\n")


class Readable(Protocol):
    """A tar's bytes: a memoryview, or whatever gives slices of a file."""

    def __len__(self) -> int: ...
    def __getitem__(self, key: slice, /) -> bytes | memoryview: ...


@dataclass(frozen=True)
class Member:
    """A regular file of a tar: its header starts at `start` (with any extension headers before it), its data at `data`; bytes."""

    name: str
    start: int
    data: int
    size: int

    @property
    def end(self) -> int:
        """First byte after the padding."""
        return self.data + -(-self.size // BLOCK) * BLOCK


@dataclass(frozen=True)
class Group:
    """The members of one sample, by suffix, and the bytes [start, end) they fill."""

    key: str
    members: dict[str, Member]
    start: int
    end: int


def members(data: Readable, where: str, whole: bool = True) -> Iterator[Member]:
    """The regular files of a tar; `whole` demands the end mark, without which the tar was cut.

    Raises DataError naming `where` and the offset of a damaged header or of the cut.
    """
    position, start, long_name = 0, 0, None
    while position + BLOCK <= len(data):
        header = bytes(data[position : position + BLOCK])
        if header == _ZERO_BLOCK:
            return
        size, kind = _size(header, where, position), header[156:157]
        body = position + BLOCK
        if body + size > len(data):
            break
        if kind in (b"x", b"L"):
            long_name = _extended_name(bytes(data[body : body + size]), kind) or long_name
        else:
            if kind in (b"0", b"\0"):
                yield Member(long_name or _name(header), start, body, size)
            if kind != b"g":
                long_name = None
        position = body + -(-size // BLOCK) * BLOCK
        if kind not in (b"x", b"L"):
            start = position
    if whole or position != len(data):
        raise DataError(f"{where}: the tar is cut off at byte {len(data)}; copy or download it again")


def groups(data: Readable, where: str, whole: bool = True) -> Iterator[Group]:
    """Consecutive members with the same name up to the first dot, as WebDataset groups them."""
    key, found, start, end = None, dict[str, Member](), 0, 0
    for member in members(data, where, whole):
        match = _KEY_AND_SUFFIX.match(member.name)
        if match is None or ("/" not in member.name and member.name.startswith("__") and member.name.endswith("__")):
            continue
        prefix, suffix = match.group(1), match.group(2).lower()
        if prefix != key:
            if key is not None:
                yield Group(key, found, start, end)
            key, found, start = prefix, {}, member.start
        if suffix in found:
            raise DataError(f"{where}: {member.name} is there twice; a sample's members have different suffixes")
        found[suffix] = member
        end = member.end
    if key is not None:
        yield Group(key, found, start, end)


def image_member(group: Group) -> Member | None:
    """The sample's picture: the first of its members with a suffix we decode."""
    return next((member for suffix, member in group.members.items() if suffix in IMAGE_SUFFIXES), None)


def metadata_of(data: Readable, group: Group, where: str) -> dict[str, Any]:
    """The sample's json; empty without one.

    Raises DataError when the json is damaged.
    """
    member = group.members.get("json")
    if member is None:
        return {}
    try:
        value = json.loads(bytes(data[member.data : member.data + member.size]))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: {member.name} is not valid JSON ({str(error)[:80]})") from error
    return value if isinstance(value, dict) else {}


def captions_of(data: Readable, group: Group, metadata: dict[str, Any]) -> tuple[str, ...]:
    """The list `captions` of the json if there is one, else the text; blank captions do not count."""
    captions = metadata.get("captions")
    if not isinstance(captions, list):
        member = group.members.get("txt")
        captions = [bytes(data[member.data : member.data + member.size]).decode("utf-8", "replace")] if member else []
    return tuple(caption for caption in captions if isinstance(caption, str) and caption.strip())


def _size(header: bytes, where: str, position: int) -> int:
    try:
        checksum = int(header[148:156].split(b"\0", 1)[0].strip() or b"0", 8)
        if checksum != 256 + sum(header[:148]) + sum(header[156:]):
            raise ValueError
        if header[124] & 0x80:  # base 256, for members of 8 GiB and more
            return int.from_bytes(header[125:136], "big")
        size = int(header[124:136].split(b"\0", 1)[0].strip() or b"0", 8)
        if size < 0:
            raise ValueError
        return size
    except ValueError:
        raise DataError(f"{where}: damaged tar header at byte {position}; copy or download it again") from None


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    return (prefix + b"/" + name if prefix else name).decode("utf-8", "surrogateescape")


def _extended_name(body: bytes, kind: bytes) -> str | None:
    if kind == b"L":
        return body.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
    match = _PAX_PATH.search(body)
    return match.group(1).decode("utf-8", "surrogateescape") if match else None
