"""Turn a folder of tars that somebody else wrote into a dataset: an index for each, and a manifest. The tars stay as they are."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from pipeline.core import storage
from pipeline.core.errors import DataError, StorageUnreachable
from pipeline.core.storage import Listed
from shards import index, layout
from shards.manifest import Manifest, ShardEntry, newest_number, publish, read_manifest
from shards.remote.transport import DEADLINES
from shards.workers import Progress, no_progress, resumable, spread

log = logging.getLogger(__name__)

UNREADABLE = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_PIECE_BYTES = 16 * 2**20


class DamagedTars(DataError):
    """Some tars of a folder cannot be indexed; `lines` names each with what is wrong."""

    def __init__(self, message: str, lines: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.lines = lines


@dataclass(frozen=True)
class Indexed:
    """What is in a tar; `size` and `version` are its listing's, `left_out` counts groups that are no samples by reason."""

    name: str
    size: int
    version: str
    samples: int
    captions: int
    captioned: int
    sha256: str
    left_out: dict[str, int]


@dataclass(frozen=True)
class _Job:
    folder: str
    root: str
    name: str
    listed: Listed


def tar_names(folder: str) -> list[str]:
    """Names of the tars directly in a folder, without `.tar`.

    Raises DataError when there is none.
    """
    return list(listed_tars(folder))


def listed_tars(folder: str) -> dict[str, Listed]:
    """The tars directly in a folder, by name without `.tar`.

    Raises DataError when there is none.
    """
    files = storage.list_sizes(folder)
    if list(files) == [folder.rstrip("/").rsplit("/", 1)[-1]] and not storage.list_folders(folder):  # a listing of a file is that file
        raise DataError(f"{folder}: is a file; give the folder that holds the shards")
    found = {name.removesuffix(".tar"): one for name, one in files.items() if name.endswith(".tar") and not name.startswith(".")}
    others = [name for name in files if name.lower().endswith((*UNREADABLE, ".tar")) and not name.endswith(".tar")]
    if found:
        if others:
            log.warning("%s: left out, since only plain tars called .tar can be read by ranges: %s", folder, ", ".join(others))
        return found
    if others:
        raise DataError(f"{folder}: no .tar files here, but {others[0]}; unpack what is compressed (gunzip, unzstd), and let the names end in .tar")
    if inside := [name for name in storage.list_folders(folder) if any(file.endswith(".tar") for file in storage.list_files(storage.join(folder, name)))]:
        raise DataError(
            f"{folder}: no .tar files here, but in its folders {', '.join(inside[:5])}; each of them is a dataset, `albef shards reshard` makes one of several"
        )
    raise DataError(f"{folder}: no .tar files here; give the folder that holds the shards themselves")


def index_folder(
    folder: str,
    index_root: str | None = None,
    workers: int | None = None,
    skip_damaged: bool = False,
    afresh: bool = False,
    progress: Progress = no_progress,
) -> Manifest:
    """Index every tar of the folder and publish them; tars that an earlier call indexed and that did not change are not read, unless `afresh`.

    With `skip_damaged` a damaged tar is left out, and the manifest's `config` says so.

    Raises:
        DamagedTars: some are damaged; nothing is published then, and the next call reads those alone.
        Stopped: a signal came, the storage does not answer, or the disk is full; the next call goes on.
    """
    root = index_root or folder
    tars = listed_tars(folder)
    found = {} if afresh else _unchanged(root, tars)
    jobs = [_Job(folder, root, name, listed) for name, listed in tars.items() if name not in found]
    damaged: dict[str, str] = {}
    total, done = sum(one.size for one in tars.values()), sum(one.size for one in found.values())
    progress("indexing", done, total)
    with resumable():
        for job, result in spread(_index, jobs, workers, total - done):
            if isinstance(result, Indexed):
                found[job.name] = result
            else:
                damaged[job.name] = result
            done += job.listed.size
            progress("indexing", done, total)
    if damaged and (not skip_damaged or not found):
        lines = tuple(damaged[name] for name in sorted(damaged))
        several = "" if len(lines) == 1 else f", and {len(lines) - 1} more"
        raise DamagedTars(f"{lines[0]}{several}; nothing was published: replace them and index again, which reads those alone, or --skip-damaged", lines)
    return _publish(folder, root, [found[name] for name in sorted(found)], damaged)


def _publish(folder: str, root: str, found: list[Indexed], damaged: dict[str, str]) -> Manifest:
    newest = read_manifest(root) if newest_number(root) is not None else None
    known = {shard.name: shard for shard in newest.shards} if newest else {}
    entries = []
    for one in found:
        before = known.get(one.name)
        if newest and before and before.sha256 != one.sha256:
            log.warning("%s: not the bytes manifest %d has; indexed as it is now", layout.tar_path(folder, one.name), newest.number)
        entries.append(ShardEntry(one.name, one.samples, one.captions, one.size, one.sha256, before.source if before else folder, one.captioned))
    outcomes = Counter({"success": sum(one.samples for one in found), index.WITHOUT_IMAGE: 0})
    for one in found:
        outcomes.update(one.left_out)
    config = dict(newest.config) if newest else {"indexed": folder}
    config.pop("damaged_tars", None)
    return publish(root, entries, dict(outcomes), config | ({"damaged_tars": dict(sorted(damaged.items()))} if damaged else {}))


def _unchanged(root: str, tars: dict[str, Listed]) -> dict[str, Indexed]:
    """What earlier calls found in tars that have the size and version they had then."""
    indexes, records = (set(storage.list_files(storage.join(root, folder))) for folder in ("index", "indexed"))
    found = {}
    for name, listed in tars.items():
        if f"{name}.albef" in indexes and f"{name}.json" in records:
            try:
                record = Indexed(**json.loads(storage.read_bytes(layout.indexed_path(root, name))))
            except (ValueError, TypeError):  # of another version, or damaged: the tar is read again
                continue
            if (record.size, record.version) == (listed.size, listed.version):
                found[name] = record
    return found


def _index(job: _Job) -> Indexed | str:
    """Index one tar; the index first, then what was found. Of a damaged tar, what is wrong in one line."""
    try:
        return storage.patiently(lambda: _indexed(job), DEADLINES.patience_s)
    except StorageUnreachable:
        raise
    except DataError as error:
        return str(error)


def _indexed(job: _Job) -> Indexed:
    path = layout.tar_path(job.folder, job.name)
    scan = index.scan(path)
    rows = scan.index
    if rows.tar_bytes != job.listed.size:
        raise DataError(f"{path}: {rows.tar_bytes} bytes, {job.listed.size} when listed; wait until nobody writes to it")
    index.write_index(layout.index_path(job.root, job.name), rows)
    found = Indexed(job.name, job.listed.size, job.listed.version, len(rows), int(rows.captions.sum()), rows.captioned, scan.sha256, dict(scan.left_out))
    storage.write_bytes(layout.indexed_path(job.root, job.name), json.dumps(asdict(found)).encode())
    return found


def sha256_of(path: str) -> str:
    """sha256 of a file, read in pieces."""
    digest = hashlib.sha256()
    for piece in _pieces(path):
        digest.update(piece)
    return digest.hexdigest()


def _pieces(path: str) -> Iterator[bytes]:
    total = storage.size(path)
    for start in range(0, total, _PIECE_BYTES):
        yield storage.read_range(path, start, min(start + _PIECE_BYTES, total))
