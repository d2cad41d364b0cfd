"""Walk the members of a tar and group them into samples by WebDataset's rule; nothing is unpacked, and only plain pictures, texts and json are looked into.

Python's tarfile takes a damaged header for the end of the archive and says nothing; this walk names it. What may be a stranger's is bounded:
names, extension headers, members, samples and json (the MAX_ constants), and a key is never a path out of a folder.
"""

import functools
import hashlib
import json
import re
import struct
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol
from urllib.parse import quote

from pipeline.core.errors import DataError

BLOCK = 512
IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")

MAX_IMAGE_BYTES = 256 * 2**20  # the 64 megapixels that are decoded at most are 183 MiB uncompressed
MAX_TEXT_BYTES = 4 * 2**20  # of a txt or json; parsed json takes up to 30 times its bytes
MAX_SAMPLE_BYTES = 512 * 2**20  # from a sample's first member to its last, others in between included: it is read in one piece
MAX_EXTENSION_BYTES = 64 * 2**10  # of a pax or GNU header that goes before a member: Linux ends paths at 4 KiB and attributes at 64 KiB
MAX_KEY_CHARACTERS = 1024
MAX_JSON_DEPTH = 64

DUPLICATE_KEY, NOT_A_FILE, SPARSE, TOO_LARGE = "duplicate_key", "not_a_file", "sparse", "too_large"  # why a sample is left out

# Bytes of what is looked into, by its suffix; nothing else ever is, and above all nothing is unpickled.
_MAX_BYTES = {**dict.fromkeys(IMAGE_SUFFIXES, MAX_IMAGE_BYTES), "txt": MAX_TEXT_BYTES, "json": MAX_TEXT_BYTES}
_FIELDS = struct.Struct("100s24x11sc12x8sc188xB166x")  # name, size, the size's last byte, checksum, kind, first byte of the prefix
_MAGIC, _PREFIX = slice(257, 263), slice(345, 500)
_BASE_256, _BLANK, _NUL = 0x80, ord(" "), b"\0"
_UTF8 = ("utf-8", "surrogateescape")
_ZERO_BLOCK = bytes(BLOCK)
_PADDING = BLOCK - 1
_WINDOW = 4 * 2**10  # looked at at once: between two pictures mostly lie small members, whose headers come with one slice
_TAIL_PIECE = 2**20
_PLAIN, _FOLDERS, _WITHOUT_DATA = frozenset((b"0", b"\0", b"7")), frozenset((b"5", b"D")), frozenset((b"1", b"2", b"3", b"4", b"5", b"6"))
_LONG_NAME, _LONG_LINK, _PAX_FOR_ALL, _GNU_SPARSE = b"L", b"K", b"g", b"S"
_EXTENSIONS = frozenset((b"x", b"X", _LONG_NAME, _LONG_LINK, _PAX_FOR_ALL))
_PAX_WANTED = re.compile(rb" (?:path|size|GNU\.sparse\.[a-z]+)=")
_UPWARDS = re.compile(r"^/|(?<![^/])\.\.(?![^/])")  # a slash in front, or a part that leads to the folder above


class Readable(Protocol):
    """A tar's bytes: a memoryview, or whatever gives slices of a file."""

    def __len__(self) -> int: ...
    def __getitem__(self, key: slice, /) -> bytes | memoryview: ...


class Member(NamedTuple):
    """A member of a tar: its header starts at `start` (with any extension headers before it), its data at `data`; bytes."""

    name: str
    start: int
    data: int
    size: int
    refused: str | None = None  # why it is not looked into; None for a plain file

    @property
    def end(self) -> int:
        """First byte after the padding."""
        return self.data + -(-self.size // BLOCK) * BLOCK


class _Extension(NamedTuple):
    """What extension headers say of the next member."""

    name: str | None = None
    size: int | None = None
    refused: str | None = None


_NOTHING_SAID = _Extension()
_new = tuple.__new__  # half the time of calling the class, in a loop that turns millions of times


class Group(NamedTuple):
    """The members of one sample, by suffix, and the bytes [start, end) they fill; without members where the sample is `refused`, which says why."""

    key: str
    members: dict[str, Member]
    start: int
    end: int
    refused: str | None = None


def members(data: Readable, where: str, whole: bool = True) -> Iterator[Member]:
    """The plain files of a tar; `whole` demands the end mark, without which the tar was cut.

    Raises DataError naming `where` and the offset of a damaged header, of the cut, or of what follows the end mark.
    """
    return (member for member in _every_member(data, where, whole) if member.refused is None)


def groups(data: Readable, where: str, whole: bool = True) -> Iterator[Group]:
    """Consecutive members with the same name up to the first dot, as WebDataset groups them; each under a safe key.

    A group is refused when it holds a member twice, a member or bytes over the bounds, or as a picture, text or json something other than a plain file.
    Raises what `members` raises.
    """
    key: str | None = None
    found, start, end, refused = dict[str, Member](), 0, 0, None
    for member in _every_member(data, where, whole):
        name, first, body, size, why = member
        folder = name.rfind("/") + 1
        dot = name.find(".", folder)
        if dot <= folder or (
            name[-1] == "_" and not folder and name.startswith("__") and name.endswith("__")
        ):  # hidden, without suffix, or a tool's own: part of no sample
            continue
        if name[:dot] != key:
            if key is not None:
                yield _group(key, found, start, end, refused)
            key, found, start, refused = name[:dot], {}, first, None
        suffix = name[dot + 1 :].lower()
        if (why or size > MAX_TEXT_BYTES) and suffix in _MAX_BYTES:
            refused = refused or why or (TOO_LARGE if size > _MAX_BYTES[suffix] else None)
        if suffix in found:
            refused = refused or DUPLICATE_KEY
        elif why is None:
            found[suffix] = member
        end = body + (size + _PADDING & -BLOCK)
    if key is not None:
        yield _group(key, found, start, end, refused)


def image_member(group: Group) -> Member | None:
    """The sample's picture: the first of its members with a suffix we decode."""
    for suffix, member in group.members.items():
        if suffix in IMAGE_SUFFIXES:
            return member
    return None


def metadata_of(data: Readable, group: Group, where: str) -> dict[str, Any]:
    """The sample's json; empty without one.

    Raises DataError when the json is damaged or nested deeper than MAX_JSON_DEPTH.
    """
    member = group.members.get("json")
    if member is None:
        return {}
    try:
        value = json.loads(bytes(data[member.data : member.data + member.size]))
        if _deeper_than(MAX_JSON_DEPTH, value):
            raise ValueError(f"nested deeper than {MAX_JSON_DEPTH} levels")
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: {group.key}.json is not valid JSON ({str(error)[:80]})") from error
    return value if isinstance(value, dict) else {}


def captions_of(data: Readable, group: Group, metadata: dict[str, Any]) -> tuple[str, ...]:
    """The list `captions` of the json if there is one, else the text; blank captions do not count.

    Half a surrogate pair, which json can say and UTF-8 cannot, becomes a question mark.
    """
    captions = metadata.get("captions")
    if not isinstance(captions, list):
        member = group.members.get("txt")
        captions = [bytes(data[member.data : member.data + member.size]).decode("utf-8", "replace")] if member else []
    return tuple(caption.encode("utf-8", "replace").decode() for caption in captions if isinstance(caption, str) and caption.strip())


def safe_key(key: str) -> str:
    """A key that may become a file name or a line of a log: relative, never upwards, printable, of at most MAX_KEY_CHARACTERS.

    What is not so is written as %XX of its UTF-8 bytes; of a key that is too long the end gives way to 16 hex digits of its sha256.
    """
    if key.isalnum() and len(key) <= MAX_KEY_CHARACTERS:  # nearly all; then it is printable, too
        return key
    if key.isprintable() and ".." not in key and "\\" not in key and key[:1] != "/" and len(key) <= MAX_KEY_CHARACTERS:
        return key
    printable = "".join(letter if letter.isprintable() and letter != "\\" else quote(letter.encode(*_UTF8), safe="") for letter in key)
    safe = _UPWARDS.sub(lambda found: found.group().replace("/", "%2F").replace(".", "%2E"), printable)
    if len(safe) <= MAX_KEY_CHARACTERS:
        return safe
    return f"{safe[: MAX_KEY_CHARACTERS - 17]}~{hashlib.sha256(safe.encode()).hexdigest()[:16]}"


def _group(key: str, found: dict[str, Member], start: int, end: int, refused: str | None) -> Group:
    if end - start > MAX_SAMPLE_BYTES:
        refused = refused or TOO_LARGE
    return _new(Group, (safe_key(key), {} if refused else found, start, end, refused))


def _every_member(data: Readable, where: str, whole: bool) -> Iterator[Member]:
    """The members other than folders, `refused` where they are no plain files: links, devices, sparse files and what no standard knows."""
    position, start, total = 0, 0, len(data)
    window, window_start = b"", 0  # bytes, not a view, which would keep a mapped tar open as long as an error is looked at
    extension = _NOTHING_SAID
    while position + BLOCK <= total:
        at = position - window_start
        if at + BLOCK > len(window):
            window, window_start, at = bytes(data[position : position + _WINDOW]), position, 0
        header = window[at : at + BLOCK]
        raw_name, digits, last, checksum, kind, prefixed = _FIELDS.unpack(header)
        try:
            size = int(digits, 8) if last == _NUL else _size(digits + last)
        except ValueError:
            size = _size(digits + last)
        if zlib.adler32(header) & 0xFFFF != _low_adler(checksum) or size < 0:
            if header == _ZERO_BLOCK:
                _refuse_more(data, position, where)
                return
            raise DataError(f"{where}: damaged tar header at byte {position}; copy or download it again")
        body, plain = position + BLOCK, kind in _PLAIN
        if not plain:
            if kind == _GNU_SPARSE:
                body = _after_sparse_map(data, header, body)
            elif kind in _WITHOUT_DATA:
                size = 0  # some tars give a hard link the size of the file it means
        if extension.size is not None and kind not in _EXTENSIONS:
            size = extension.size
        if body + size > total:
            break
        position = body + (size + _PADDING & -BLOCK)
        if plain and extension is _NOTHING_SAID:  # nearly all members
            name = _name(raw_name, header) if prefixed else raw_name.partition(b"\0")[0].decode(*_UTF8)
            yield _new(Member, (name, start, body, size, None))
        elif kind in _EXTENSIONS:
            extension = _extended(extension, bytes(data[body : body + min(size, MAX_EXTENSION_BYTES + 1)]), kind, f"{where}: extension header at byte {body}")
            if kind == _PAX_FOR_ALL and extension is _NOTHING_SAID:
                start = position
            continue
        elif kind not in _FOLDERS:
            refused = extension.refused or (None if plain else SPARSE if kind == _GNU_SPARSE else NOT_A_FILE)
            yield _new(Member, (extension.name or _name(raw_name, header), start, body, size, refused))
        extension, start = _NOTHING_SAID, position
    if whole or position != total:
        raise DataError(f"{where}: the tar is cut off at byte {total}; copy or download it again")


@functools.lru_cache(maxsize=8192)  # headers of one tar have a few hundred different ones
def _low_adler(field: bytes) -> int:
    """The low half of the Adler-32 of a header whose checksum field this is; -1 where the field is no number.

    A tar's checksum is the sum of the header's bytes, its own field counted as blanks; the half is 1 + the sum of the bytes, modulo 65521,
    and comes in a tenth of the time in which Python adds them up.
    """
    try:
        return (1 + int(field.split(b"\0", 1)[0] or b"0", 8) - 8 * _BLANK + sum(field)) % 65521
    except ValueError:
        return -1


def _size(field: bytes) -> int:
    """Bytes of data; negative where the field is damaged."""
    if field[0] == _BASE_256:  # members of 8 GiB and more
        return int.from_bytes(field[1:], "big")
    try:
        return int(field.partition(b"\0")[0] or b"0", 8)
    except ValueError:
        return -1 if field.strip(b"\0 ") else 0


def _name(raw_name: bytes, header: bytes) -> str:
    """The name, behind what POSIX keeps of it in another field, where GNU tar keeps times."""
    name = raw_name.partition(b"\0")[0]
    if header[_PREFIX][0] and header[_MAGIC] == b"ustar\0":
        name = header[_PREFIX].partition(b"\0")[0] + b"/" + name
    return name.decode(*_UTF8)


def _extended(before: "_Extension", text: bytes, kind: bytes, where: str) -> "_Extension":
    """What is known of the next member after one more extension header.

    Raises DataError when the header is longer than MAX_EXTENSION_BYTES, damaged, or gives all members that follow one name or size.
    """
    if len(text) > MAX_EXTENSION_BYTES:
        raise DataError(f"{where}: more than {MAX_EXTENSION_BYTES} bytes, which no path needs; write the tar anew without extended attributes")
    if kind == _LONG_NAME:
        return before._replace(name=text.split(b"\0", 1)[0].decode(*_UTF8))
    if kind == _LONG_LINK or not _PAX_WANTED.search(text):
        return before
    if kind == _PAX_FOR_ALL:
        raise DataError(f"{where}: a global pax header gives all members one path or size; write the tar anew, as with `tar --format=gnu`")
    return _pax(before, text, where)


def _pax(said: "_Extension", text: bytes, where: str) -> "_Extension":
    """Records are `<length> <keyword>=<value>\\n`; the length decides, so that a value cannot pose as a record."""
    position = 0
    while position < len(text) and text[position]:
        blank = text.find(b" ", position, position + 8)
        digits = text[position:blank]
        end = position + int(digits) if blank > 0 and digits.isdigit() else 0
        keyword, equals, value = text[blank + 1 : end - 1].partition(b"=")
        if end <= blank or text[end - 1 : end] != b"\n" or not equals or (keyword == b"size" and not value.isdigit()):
            raise DataError(f"{where}: a damaged pax header; copy or download the tar again")
        if keyword == b"size":
            said = said._replace(size=int(value[:20]))
        elif keyword in (b"path", b"GNU.sparse.name"):
            said = said._replace(name=value.decode(*_UTF8))
        if keyword.startswith(b"GNU.sparse."):
            said = said._replace(refused=SPARSE)
        position = end
    return said


def _after_sparse_map(data: Readable, header: bytes, body: int) -> int:
    """Where the data of an old GNU sparse file start: after as many blocks of map as flags announce."""
    more = header[482]
    while more and body + BLOCK <= len(data):
        more = data[body + 504 : body + 505][0]
        body += BLOCK
    return body


def _refuse_more(data: Readable, position: int, where: str) -> None:
    """An end mark that something follows is a hole in the tar, or two tars one after the other."""
    for start in range(position, len(data), _TAIL_PIECE):
        rest = bytes(data[start : start + _TAIL_PIECE]).lstrip(b"\0")
        if rest:
            found = min(start + _TAIL_PIECE, len(data)) - len(rest)
            raise DataError(f"{where}: zeros at byte {position} end the tar, but more follows at byte {found}; copy it again, or unpack and pack it anew")


def _deeper_than(depth: int, value: object) -> bool:
    level = [value]
    for _ in range(depth):
        level = [inner for outer in level if isinstance(outer, dict | list) for inner in (outer.values() if isinstance(outer, dict) else outer)]
        if not level:
            return False
    return any(isinstance(outer, dict | list) for outer in level)
