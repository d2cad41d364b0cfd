"""Make a dataset of others: fewer samples, shuffled globally, in shards of another size; the same bytes whatever the workers and however often it was killed.

Two passes, both sequential. The first reads the inputs once, judges every sample, and when the samples are shuffled writes those kept as runs,
each sorted by the samples' random numbers; the second makes each new shard out of one stretch of every run. So a shuffle reads the inputs once,
and writes and reads as much again; without a shuffle, conditions cost a reading of their own; without either, the first pass needs indexes alone.
"""

import contextlib
import itertools
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.core import storage
from pipeline.core.errors import DataError
from pipeline.core.run_directory import RunDirectory, fingerprint
from shards import index, layout, rewrite, tar
from shards.manifest import Manifest, newest_number, publish, read_manifest
from shards.reshard.conditions import Condition, unknown_columns
from shards.reshard.cut import cut, in_order, write_cuts
from shards.reshard.request import Input, Portion, Request, Work, cut_into_portions, in_threads
from shards.reshard.select import Selected, read_selected, select
from shards.reshard.write import Naming, Written, read_written, write
from shards.workers import Progress, no_progress, resumable, spread

LOOKED_AT = 64  # samples whose json must have the columns that conditions name
HASHES_AT_ONCE = 16_000_000  # keys compared with each other in memory, 8 bytes each and as much again to sort them


@dataclass(frozen=True)
class Resharded:
    """The manifest published (or found, when all was done before), and what was left out by reason; damaged samples by name."""

    manifest: Manifest
    left_out: dict[str, int]
    damaged: tuple[str, ...]


def pinned(folder: str, index_root: str | None = None, number: int | None = None) -> Input:
    """The dataset in `folder` with its manifest of that number, or the newest.

    Raises DataError when there is none.
    """
    manifest = read_manifest(index_root or folder, number)
    return Input(folder, index_root or folder, manifest.number, manifest.fingerprint)


def reshard(
    request: Request, out: str, workers: int | None = None, spill: str | None = None, skip_damaged: bool = False, progress: Progress = no_progress
) -> Resharded:
    """Write the dataset `request` describes to the empty folder `out`, or go on where an earlier start with the same request was stopped.

    `spill` is where the runs of a shuffle lie meanwhile, in place of `out`; with `skip_damaged` damaged samples are left out, by name.

    Raises:
        ConfigError, DataError: the inputs, the conditions, the keys or the place are wrong; nothing is written then.
        Stopped: a signal, a full disk, or storage that does not answer; the same call goes on.
    """
    out = out.rstrip("/") or "/"
    _refuse_overlap(request, out)
    name = fingerprint([request.as_json(), out])
    work = Work(out, storage.join(spill, f"reshard-{name}") if spill else storage.join(out, "reshard", "runs"), name)
    with resumable():
        if (done := _published(work, request)) is not None:
            _clear(work)
            return done
        begun = _is_begun(work, request)
        manifests = [read_manifest(one.root, one.manifest) for one in request.inputs]
        portions = cut_into_portions(request.inputs, manifests)
        _check_columns(request, portions)
        if not request.rename_keys:
            _refuse_equal_keys(portions)
        _check_space(work, request, portions)
        with _held(work):
            if not begun:
                storage.write_bytes(work.path("portions.json"), json.dumps([asdict(one) for one in portions]).encode())
                storage.write_bytes(work.path("request.json"), json.dumps(request.as_json(), indent=1).encode())
            return _run(work, request, portions, workers, skip_damaged, progress)


def _run(work: Work, request: Request, portions: Sequence[Portion], workers: int | None, skip_damaged: bool, progress: Progress) -> Resharded:
    selected = _select(work, portions, workers, skip_damaged, progress)
    kept, left_out = sum(one.kept for one in selected), Counter[str]()
    for one in selected:
        left_out.update(one.left_out)
    if not kept:
        _clear(work)
        reasons = ", ".join(f"{reason}: {count}" for reason, count in left_out.most_common())
        raise DataError(f"{work.out}: no sample is left ({reasons or 'the inputs have none'}); nothing was written")
    first_of = cut(in_order(work, portions, request, kept), request.samples_per_shard, request.bytes_per_shard)
    write_cuts(work, portions, first_of)
    naming = Naming(request.rename_keys, max(5, len(str(len(first_of) - 1))), max(4, len(str(min(kept, request.samples_per_shard) - 1))))
    written = _write(work, naming, len(first_of), sum(one.bytes for one in selected), workers, progress)
    damaged = tuple(message for one in selected for message in one.damaged)
    sources = Counter[str]()
    for shard in written:
        sources.update(shard.sources)
    config = {"reshard": {"request": request.as_json(), "samples_by_source": dict(sorted(sources.items())), "damaged": damaged}}
    manifest = publish(work.out, [one.entry for one in written], {"success": kept, **dict(left_out.most_common())}, config)
    _clear(work)
    return Resharded(manifest, dict(left_out.most_common()), damaged)


def _select(work: Work, portions: Sequence[Portion], workers: int | None, skip_damaged: bool, progress: Progress) -> list[Selected]:
    done = work.done("selected")
    found = {one.number: read_selected(work, one) for one in portions if f"{one.number:06d}" in done}
    if not skip_damaged and (damaged := [message for one in found.values() for message in one.damaged]):  # shards may be written without them already
        raise DataError(f"{damaged[0]}; an unfinished reshard in {work.out} left it out: repeat that with --skip-damaged, or remove {work.out}")
    todo = [(work, one, skip_damaged) for one in portions if one.number not in found]
    total = sum(one.bytes for one in portions)
    read = total - sum(portion.bytes for _, portion, _ in todo)
    progress("selecting", read, total)
    for (_, portion, _), selected in spread(select, todo, workers, total - read):
        found[portion.number] = selected
        read += portion.bytes
        progress("selecting", read, total)
    return [found[one.number] for one in portions]


def _write(work: Work, naming: Naming, shards: int, total: int, workers: int | None, progress: Progress) -> list[Written]:
    done = work.done("written")
    found = {number: read_written(work, naming.shard(number)) for number in range(shards) if naming.shard(number) in done}
    todo = [(work, naming, number) for number in range(shards) if number not in found]
    bytes_done = sum(one.entry.bytes for one in found.values())
    progress("writing", bytes_done, total)
    for (_, _, number), written in spread(write, todo, workers, total - bytes_done):
        found[number] = written
        bytes_done += written.entry.bytes
        progress("writing", min(bytes_done, total), total)
    return [found[number] for number in range(shards)]


def _published(work: Work, request: Request) -> Resharded | None:
    """What an earlier start published in `out`; raises DataError when that is another dataset."""
    if newest_number(work.out) is None:
        return None
    manifest = read_manifest(work.out)
    record: dict[str, Any] = manifest.config.get("reshard", {})
    if manifest.number != 1 or record.get("request") != request.as_json():
        raise DataError(
            f"{work.out}: holds a dataset already (manifest {manifest.number}, made by {manifest.created_by}); give a folder of its own to the new one"
        )
    return Resharded(manifest, {name: count for name, count in manifest.outcomes.items() if name != "success"}, tuple(record["damaged"]))


def _is_begun(work: Work, request: Request) -> bool:
    """Whether an earlier start with this very request was stopped; raises DataError when `out` holds anything else."""
    path = work.path("request.json")
    if storage.exists(path):
        found, asked = json.loads(storage.read_bytes(path)), request.as_json()
        if found != asked:
            key = next(key for key in asked if found.get(key) != asked[key])
            if key == "inputs":
                raise DataError(
                    f"{work.out}: an unfinished reshard of {_named(found)} lies here, now it is {_named(asked)}; repeat that (--manifest) or remove it"
                )
            raise DataError(
                f"{work.out}: an unfinished reshard of other settings lies here ({key}: {found.get(key)}, now {asked[key]}); repeat those or remove it"
            )
        return True
    if storage.is_local(work.out) and Path(_local(work.out)).is_file():
        raise DataError(f"{work.out}: is a file; give a folder that does not exist yet")
    others = [name for name in [*storage.list_files(work.out), *storage.list_folders(work.out)] if name != "reshard"]
    if others:
        raise DataError(
            f"{work.out}: not empty ({', '.join(others[:3])}{', ...' if len(others) > 3 else ''}); give an empty folder, or one that does not exist yet"
        )
    return False


def _named(request: dict[str, Any]) -> str:
    return ", ".join(f"{one['folder']} (manifest {one['manifest']})" for one in request["inputs"])


def _refuse_overlap(request: Request, out: str) -> None:
    places = [place for one in request.inputs for place in dict.fromkeys((one.folder, one.root))]
    for place in places:
        if _within(place, out) or _within(out, place):
            raise DataError(f"{out}: overlaps the input {place}; a dataset is never written over: give another folder")
    for one, other in itertools.combinations(request.inputs, 2):
        if _absolute(one.folder) == _absolute(other.folder):
            raise DataError(f"{one.folder}: given twice; every sample is taken once")


def _within(inner: str, outer: str) -> bool:
    return f"{_absolute(inner)}/".startswith(f"{_absolute(outer)}/")


def _absolute(path: str) -> str:
    return str(Path(_local(path)).resolve()) if storage.is_local(path) else path.replace("s3a://", "s3://", 1).rstrip("/")


def _local(path: str) -> str:
    return path.removeprefix("file://")


def _check_columns(request: Request, portions: Sequence[Portion]) -> None:
    """Hold the conditions' names against what some samples, evenly spread, have."""
    conditions = [Condition(text) for text in request.where]
    if not conditions or not portions:
        return
    total = portions[-1].start + portions[-1].stop - portions[-1].first
    numbers = np.unique(np.linspace(0, total - 1, LOOKED_AT).round().astype(np.int64))
    places = np.searchsorted([portion.start for portion in portions], numbers, "right") - 1
    looks = [(portions[place], numbers[places == place]) for place in np.unique(places).tolist()]
    jsons = [one for some in in_threads(_jsons, looks) for one in some]
    if (problem := unknown_columns(conditions, jsons)) is not None:
        raise DataError(problem)


def _jsons(look: tuple[Portion, npt.NDArray[np.int64]]) -> list[dict[str, Any]]:
    """The jsons of the samples of those numbers; a damaged one is met again, by name, in the first pass."""
    portion, numbers = look
    shard, found = index.read_index(layout.index_path(portion.root, portion.shard)), []
    rows = portion.first + numbers - portion.start
    for sample in rewrite.read_samples(portion.tar, shard.offset[rows], shard.length[rows], portion.tar_bytes):
        with contextlib.suppress(DataError):
            found.append(tar.metadata_of(sample, next(tar.groups(sample, portion.tar, whole=False)), portion.tar))
    return found


def _refuse_equal_keys(portions: Sequence[Portion]) -> None:
    """Two samples of one key would become neighbours in a tar, and then one sample."""
    shards = list({(one.root, one.shard): one for one in portions}.values())
    total = sum(one.stop - one.first for one in portions)
    parts = -(-total // HASHES_AT_ONCE)
    for part in range(parts):
        together = np.sort(np.concatenate(in_threads(partial(_some_hashes, part, parts), shards)))
        twice = together[1:][together[1:] == together[:-1]]
        if len(twice):
            example = " and ".join(_with_key(shards, int(twice[0])))
            raise DataError(f"{len(twice)} keys are there more than once, such as that of {example}; --rename-keys gives every sample a new one")


def _some_hashes(part: int, parts: int, shard: Portion) -> npt.NDArray[np.uint64]:
    hashes: npt.NDArray[np.uint64] = index.read_index(layout.index_path(shard.root, shard.shard)).key_hash
    some: npt.NDArray[np.bool_] = hashes % np.uint64(parts) == np.uint64(part)
    return np.compress(some, hashes)


def _with_key(shards: Sequence[Portion], key_hash: int) -> list[str]:
    """The first two samples of that key, by name."""
    found: list[str] = []
    for one in shards:
        rows = index.read_index(layout.index_path(one.root, one.shard)).key_hash
        found += [f"{one.tar} row {row}" for row in np.flatnonzero(rows == np.uint64(key_hash)).tolist()]
        if len(found) > 1:
            break
    return found[:2]


def _check_space(work: Work, request: Request, portions: Sequence[Portion]) -> None:
    """The new dataset, and the runs of a shuffle, must fit the disks they go to; what conditions take away is not known before."""
    if request.where:
        return
    total = sum(one.bytes for one in portions)
    wanted = Counter[str]()
    for place in [work.out] + ([work.runs] if request.shuffle is not None else []):
        if storage.is_local(place):
            wanted[str(_existing(Path(_local(place)).absolute()))] += total - _bytes_in(place)
    devices = Counter[int]()
    for folder, needed in wanted.items():
        device = Path(folder).stat().st_dev
        devices[device] += needed
        free = shutil.disk_usage(folder).free
        if devices[device] > free:
            raise DataError(f"{folder}: {devices[device] / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free; make room, or let --spill point elsewhere")


def _existing(path: Path) -> Path:
    return next(one for one in (path, *path.parents) if one.exists())


def _bytes_in(folder: str) -> int:
    """Of an earlier start."""
    return sum(file.size for file in storage.list_sizes(folder).values())


@contextlib.contextmanager
def _held(work: Work) -> Iterator[None]:
    """One process at a time on a disk; what a killed one left half-written goes."""
    if not storage.is_local(work.out):
        storage.abort_uploads(work.out)
        yield
        return
    out = Path(_local(work.out))
    storage.make_folder(work.folder)  # a place that cannot be written is named
    with RunDirectory(out / "reshard").locked():
        for leftover in out.rglob(".*.tmp"):
            leftover.unlink()
        yield


def _clear(work: Work) -> None:
    storage.remove_tree(work.runs)
    storage.remove_tree(work.folder)
