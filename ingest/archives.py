"""Pictures in archives the user has: where they lie in zips and tars, local or on S3, and their bytes, with nothing unpacked to disk."""

import contextlib
import struct
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence

from ingest.outcomes import Ended, Outcome
from ingest.pair import Member
from pipeline.core import storage
from pipeline.core.errors import DataError
from shards import tar
from shards.tar_stream import LocalSlices

NOT_IN_ARCHIVE = "not_in_archive"
ENCRYPTED = "encrypted_in_archive"
UNKNOWN_COMPRESSION = "unknown_compression"

LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, then the lengths of the name and of the extra field that lie between it and the data
LOCAL_SIGNATURE = b"PK\x03\x04"
NAME_BYTES = 512  # read with the header: longer names and extra fields cost a second request
WINDOW_BYTES = 8 * 2**20
IS_ENCRYPTED = 0x1  # flag bit 0 of a zip's member


class Archives:
    """The members of several archives by their file name."""

    def __init__(self, paths: Sequence[str]) -> None:
        """Reads of a zip its central directory only, of a tar all headers.

        Raises:
            DataError: an archive is missing, damaged, or neither a zip nor a tar.
        """
        self._by_name = defaultdict[str, list[tuple[list[str], Member | str]]](list)
        for path in paths:
            for name, found in members(path):
                parts = name.split("/")
                self._by_name[parts[-1]].append((parts, found))

    def find(self, name: str) -> Member | str:
        """The member, or the reason why there is none.

        `name` may have more or fewer folders in front than the archive has: of files that share its last part, the one that shares most
        of the folders before it is taken, and of several such the first.
        """
        parts = name.split("/")
        found = self._by_name.get(parts[-1])
        return max(found, key=lambda candidate: _shared_at_end(candidate[0], parts))[1] if found else NOT_IN_ARCHIVE


def _shared_at_end(one: list[str], other: list[str]) -> int:
    pairs = zip(reversed(one), reversed(other), strict=False)
    return next((number for number, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def members(path: str) -> Iterator[tuple[str, Member | str]]:
    if path.lower().endswith(".tar"):
        with opened_tar(path) as data:
            for member in tar.members(data, path):
                yield member.name, Member(path, member.data, member.size)
    elif path.lower().endswith(".zip"):
        yield from _zip_members(path)
    else:
        raise DataError(f"{path}: not an archive pictures can be read from; give a .zip, or a .tar that is not compressed as a whole")


def _zip_members(path: str) -> Iterator[tuple[str, Member | str]]:
    with storage.open_read(path) as file, storage.errors_named(path):
        try:
            entries = zipfile.ZipFile(file).infolist()
        except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
            raise DataError(f"{path}: not a whole zip file ({error}); copy or download it again") from error
    for entry in entries:
        if not entry.is_dir():
            yield entry.filename, _zip_member(path, entry)


def _zip_member(path: str, entry: zipfile.ZipInfo) -> Member | str:
    if entry.flag_bits & IS_ENCRYPTED:
        return ENCRYPTED
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return UNKNOWN_COMPRESSION
    return Member(path, entry.header_offset, entry.compress_size, entry.compress_type == zipfile.ZIP_DEFLATED, entry.CRC)


def read_member(member: Member, max_bytes: int) -> bytes:
    """The picture's bytes, in one ranged read (two when a zip's name is very long); a zip's checksum is checked.

    Raises:
        Ended: TOO_LARGE when it has more than `max_bytes`, stored or inflated; DAMAGED_MEMBER when the archive is cut off or damaged there.
        DataError: the archive is missing or cannot be reached.
    """
    if member.size > max_bytes:
        raise Ended(Outcome.TOO_LARGE, f"{member.size} bytes in {member.archive}")
    if member.crc32 is None:
        return _exactly(member, storage.read_range(member.archive, member.offset, member.offset + member.size))
    stored = _zip_data(member)
    data = _inflated(member, stored, max_bytes) if member.deflated else stored
    if zlib.crc32(data) != member.crc32:
        raise _damaged(member, "has another checksum than the zip says")
    return data


def _zip_data(member: Member) -> bytes:
    piece = storage.read_range(member.archive, member.offset, member.offset + LOCAL_HEADER.size + NAME_BYTES + member.size)
    if len(piece) < LOCAL_HEADER.size or not piece.startswith(LOCAL_SIGNATURE):
        raise _damaged(member, "has no local header")
    _, name_bytes, extra_bytes = LOCAL_HEADER.unpack_from(piece)
    start = LOCAL_HEADER.size + name_bytes + extra_bytes
    if name_bytes + extra_bytes > NAME_BYTES:
        return _exactly(member, storage.read_range(member.archive, member.offset + start, member.offset + start + member.size))
    return _exactly(member, piece[start : start + member.size])


def _inflated(member: Member, stored: bytes, max_bytes: int) -> bytes:
    inflating = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        data = inflating.decompress(stored, max_bytes + 1)
    except zlib.error as error:
        raise _damaged(member, f"cannot be inflated ({error})") from error
    if len(data) > max_bytes:
        raise Ended(Outcome.TOO_LARGE, f"more than {max_bytes} bytes when inflated from {member.archive}")
    return data


def _exactly(member: Member, data: bytes) -> bytes:
    if len(data) != member.size:
        raise _damaged(member, "is cut off")
    return data


def _damaged(member: Member, what: str) -> Ended:
    return Ended(Outcome.DAMAGED_MEMBER, f"{member.archive}: the member at byte {member.offset} {what}")


@contextlib.contextmanager
def opened_tar(path: str) -> Iterator[tar.Readable]:
    """The tar's bytes for `shards.tar`: of a local one pictures are skipped; a remote one comes in windows."""
    if storage.is_local(path):
        with LocalSlices(path) as slices:
            yield slices
    else:
        yield _Windows(path, storage.size(path))


class _Windows:
    """A remote file that is read from front to end, a window at a time; what lies beyond a window (a long picture) is never fetched."""

    def __init__(self, path: str, size: int) -> None:
        self._path, self._size = path, size
        self._held: list[tuple[int, bytes]] = []  # two, since a sample's text is read after the header that follows it

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, key: slice) -> bytes:
        start, end, _ = key.indices(self._size)
        for first, window in self._held:
            if first <= start and end <= first + len(window):
                return window[start - first : end - first]
        window = storage.read_range(self._path, start, min(max(end, start + WINDOW_BYTES), self._size))
        self._held = [*self._held[-1:], (start, window)]
        return window[: end - start]
