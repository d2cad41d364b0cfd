"""Perceptual hashes of pictures a benchmark is scored on, from the user's copies: what `ingest.held_out.phashes` takes."""

import logging
from collections.abc import Iterator, Sequence

from ingest import archives
from ingest.archives import read_member
from ingest.outcomes import Ended
from ingest.pair import Member
from ingest.picture import Preparer
from ingest.store import StoreConfig
from pipeline.core import stopping, storage
from pipeline.core.errors import DataError

log = logging.getLogger(__name__)

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
ARCHIVES = (".zip", ".tar")
MAX_BYTES = 200 * 2**20


def build(out: str, places: Sequence[str]) -> tuple[int, list[str]]:
    """Write a parquet with `name` and `phash` of every picture in the folders, zips and tars; returns how many, and those that could not be read.

    Folders are searched to the bottom, and zips and tars in them, too.

    Raises:
        DataError: a place is missing or damaged, or has no picture that can be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    prepare = Preparer(StoreConfig())  # the hash is of the picture as ingest would store it
    hashes, unreadable = dict[str, str](), []
    for place in places:
        before = len(hashes)
        for name, member in _pictures(place):
            stopping.raise_if_stopping(None)
            try:
                hashes[name] = prepare(_body(name, member)).phash
            except Ended as end:
                unreadable.append(name)
                log.warning("%s: %s %s", name, end.outcome, end.detail)
        if len(hashes) == before:
            raise DataError(f"{place}: no picture that can be read; give a folder with pictures, a .zip or a .tar, or a dataset's folder")
    with storage.atomic_write(out) as file:
        pq.write_table(pa.table({"name": sorted(hashes), "phash": [hashes[name] for name in sorted(hashes)]}), file)
    return len(hashes), unreadable


def _pictures(place: str) -> Iterator[tuple[str, Member | str | None]]:
    """The path of each picture, with where it lies in an archive, or the reason why that cannot be read; None when it is a file."""
    if place.lower().endswith(ARCHIVES):
        for name, member in archives.members(place):
            if name.lower().endswith(PICTURES):
                yield f"{place}/{name}", member
    elif place.lower().endswith(PICTURES):
        yield place, None
    else:
        for name in storage.list_files(place):
            if name.lower().endswith((*PICTURES, *ARCHIVES)):
                yield from _pictures(storage.join(place, name))
        for name in storage.list_folders(place):
            yield from _pictures(storage.join(place, name))


def _body(name: str, member: Member | str | None) -> bytes:
    """Raises Ended when the archive does not give it."""
    if isinstance(member, str):
        raise DataError(f"{name}: {member}; unpack the archive and give the folder")
    return read_member(member, MAX_BYTES) if member is not None else storage.read_bytes(name)
