"""Take pictures out of a published dataset for good: the shards that hold them are written anew without them, and the old ones deleted.

<dataset>/purges/<number>.parquet   what is to be taken, by which entry, from which shard to which; written before anything else
<dataset>/purges/<number>.json      the entries of the new shards; written before the manifest that lists them

Killed at any moment it ends right when it, or any other command that holds the dataset, runs again: before the manifest the new shards are
removed; after it the outcome tables and the deletions are completed. Older manifests then name shards that are gone.
"""

import json
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ingest import block_list, duplicates, inputs, published
from ingest.block_list import BlockList, Match
from ingest.config import EngineConfig
from ingest.hold import dataset_held
from ingest.outcomes import Outcome
from pipeline.core import parquet, stopping, storage
from pipeline.core.errors import AlbefError, DataError
from shards import layout, manifest, rewrite, tar
from shards.manifest import Manifest, ShardEntry

if TYPE_CHECKING:
    pass

log = logging.getLogger(__name__)

COLUMNS = ("shard", "table", "new", "key", "uid", "url", "sha256", "kind", "entry")


@dataclass(frozen=True)
class Taken:
    """A sample that is taken out: of which shard, which outcome table tells of it (None in other tools' datasets), where its shard's rest goes, and why."""

    shard: str
    table: str | None
    new: str
    key: str
    uid: str | None
    url: str | None
    sha256: str | None
    kind: str
    entry: str


@dataclass(frozen=True)
class _Holder:
    """A shard that stands in the folder, listed by the manifest or by an outcome table of a round that is not finished."""

    entry: ShardEntry
    table: str | None


def purge(dataset: str, lists: Sequence[str], engine: EngineConfig | None = None) -> list[Taken]:
    """Take every sample out that the lists name; returns them.

    Raises:
        DataError: a list or the dataset is missing or damaged, or the dataset is in use.
    """
    blocked = block_list.read(lists)
    if manifest.newest_number(dataset) is None:  # before a lock or lease is written there
        manifest.read_manifest(dataset)
    with dataset_held(dataset, engine or EngineConfig()) as still_held:
        complete(dataset)
        _remove_spools(dataset)
        newest = manifest.read_manifest(dataset)
        number = max([newest.number, *_numbers(dataset)]) + 1
        holders = _holders(dataset, newest)
        _remove_half_published(dataset, {holder.entry.name for holder in holders})
        taken = [one for holder in holders for one in _taken_of(dataset, holder, blocked, number)]
        still_held()
        if taken:
            _take(dataset, newest, number, holders, taken)
            complete(dataset)
        return taken


def found(dataset: str, lists: Sequence[str]) -> list[Taken]:
    """What `purge` would take now. By the holder of the dataset."""
    blocked = block_list.read(lists)
    return [one for holder in _holders(dataset, manifest.read_manifest(dataset)) for one in _taken_of(dataset, holder, blocked, 0)]


def complete(dataset: str) -> None:
    """Bring what an interrupted purge left to its end: back before its manifest, forward after it. By the holder of the dataset."""
    numbers = _numbers(dataset)
    if not numbers:
        return
    done = {one["number"] for one in manifest.read_manifest(dataset).config.get("purges", [])}
    tars = {name.removesuffix(".tar") for name in storage.list_files(dataset)}
    indexes = {name.removesuffix(".albef") for name in storage.list_files(storage.join(dataset, "index"))}
    for number in numbers:
        plan = _read_plan(dataset, number)
        if number not in done:
            for name in {one.new for one in plan}:
                _remove_shard(dataset, name)
            storage.remove(_entries_path(dataset, number))
            storage.remove(_plan_path(dataset, number))
        elif any(one.shard in tars | indexes for one in plan):
            _forget(dataset, number, [one for one in plan if one.shard in tars | indexes])


def _take(dataset: str, newest: Manifest, number: int, holders: Sequence[_Holder], taken: Sequence[Taken]) -> None:
    """Write the new shards and publish them."""
    _write_plan(dataset, number, taken)
    storage.remove(storage.join(dataset, duplicates.FILE))  # the next ingest of the dataset, which has nothing to fetch, counts anew
    rest: dict[str, ShardEntry | None] = {}
    gone = Counter(one.shard for one in taken)
    keys = defaultdict[str, set[str]](set)
    for one in taken:
        keys[one.shard].add(one.key)
    for holder in holders:
        name = holder.entry.name
        if name in keys:
            stopping.raise_if_stopping(None)
            rest[name] = rewrite.copy_without(dataset, holder.entry, keys[name], _new_name(holder, number))
            left = rest[name]
            if (left.samples if left else 0) != holder.entry.samples - gone[name]:
                raise AlbefError(f"{dataset}: shard {name} has {holder.entry.samples} samples, {gone[name]} are to go, {left} is left")
    entries = {name: asdict(entry) if entry else None for name, entry in rest.items()}
    storage.write_bytes(_entries_path(dataset, number), json.dumps(entries).encode())
    listed = {shard.name for shard in newest.shards}
    from_listed = sum(one.shard in listed for one in taken)
    outcomes = Counter(newest.outcomes)
    outcomes[Outcome.SUCCESS.value] -= from_listed
    outcomes[Outcome.PURGED.value] += from_listed
    shards = [left for shard in newest.shards if (left := rest.get(shard.name, shard)) is not None]
    record = {"number": number, "taken": from_listed, "shards": len(rest), "by": dict(Counter(one.kind for one in taken).most_common())}
    config = newest.config | {"purges": [*newest.config.get("purges", []), record]}
    manifest.publish(dataset, shards, dict((+outcomes).most_common()), config)


def _forget(dataset: str, number: int, plan: Sequence[Taken]) -> None:
    """Set the rows' outcomes, then delete the old shards; any part of it may have been done before."""
    entries = json.loads(storage.read_bytes(_entries_path(dataset, number)))
    for shard in sorted({one.shard for one in plan}):
        of_shard = [one for one in plan if one.shard == shard]
        if (table := of_shard[0].table) is not None:
            entry = ShardEntry(**entries[shard]) if entries[shard] else None
            _set_purged(dataset, table, {one.key for one in of_shard}, entry)
        _remove_shard(dataset, shard)


def _set_purged(dataset: str, table: str, keys: set[str], entry: ShardEntry | None) -> None:
    rows = published.rows(dataset, table).to_pylist()
    for row in rows:
        if row["key"] in keys:
            row["outcome"] = Outcome.PURGED.value
    published.write(dataset, table, rows, entry)


def _holders(dataset: str, newest: Manifest) -> list[_Holder]:
    tables = {shard.entry.name: shard for shard in (published.read(dataset, name) for name in published.names(dataset)) if shard.entry is not None}
    found = [_Holder(entry, tables[entry.name].name if entry.name in tables else None) for entry in newest.shards]
    listed = {entry.name for entry in newest.shards}
    unlisted = [shard for name, shard in tables.items() if name not in listed and published.is_whole(dataset, shard)]
    return found + [_Holder(shard.entry, shard.name) for shard in unlisted if shard.entry is not None]


def _new_name(holder: _Holder, number: int) -> str:
    return published.rest_name(holder.table or holder.entry.name, number)


def _taken_of(dataset: str, holder: _Holder, blocked: BlockList, number: int) -> Iterator[Taken]:
    samples = _of_table(dataset, holder.table, blocked) if holder.table is not None else _of_tar(dataset, holder.entry.name)
    for known in samples:
        match = match_of(known, blocked)
        if match is not None:
            uid, url, sha256 = (_text(known.get(name)) for name in ("uid", "url", "sha256"))
            yield Taken(holder.entry.name, holder.table, _new_name(holder, number), known["key"], uid, url, sha256, match.kind, match.entry)


def match_of(known: dict[str, Any], blocked: BlockList) -> Match | None:
    """By what is known of a sample: `uid`, `url`, `sha256`, `phash`, each of which may be missing."""
    address = blocked.of_address(_text(known.get("uid")) or "", _text(known.get("url")) or "")
    return address or blocked.of_content(_text(known.get("sha256")), _text(known.get("phash")))


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _of_table(dataset: str, table: str, blocked: BlockList) -> list[dict[str, Any]]:
    """The successes of an outcome table that may be on the list: most are sorted out by columns, not row by row."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from ingest.near_duplicates import from_hex, near

    rows = published.rows(dataset, table, ["key", "uid", "url", "sha256", "phash", "outcome"])
    rows = rows.filter(pc.equal(rows["outcome"], Outcome.SUCCESS.value))
    uids = pa.array([key.hex() for key in (blocked.uids | blocked.url_uids)], pa.string())
    hashes = pa.array([key.hex() for key in blocked.sha256], pa.string())
    likely = pc.or_(pc.is_in(rows["uid"], uids), pc.is_in(rows["sha256"], hashes))
    if len(blocked.phashes):
        hashed = pc.indices_nonzero(pc.is_valid(rows["phash"])).to_numpy()
        close = near(from_hex(rows["phash"].take(hashed).to_pylist()), blocked.phashes, block_list.NEAR_BITS)[:, 0]
        likely = pc.or_(likely, pc.is_in(pa.array(range(rows.num_rows)), pa.array(hashed[close])))
    found: list[dict[str, Any]] = rows.filter(likely).to_pylist()
    return found


def _of_tar(dataset: str, name: str) -> Iterator[dict[str, Any]]:
    """What the samples' jsons say, and their keys, with the SHA-256 of what is stored where the json has none; some megabytes at a time."""
    import hashlib

    where = layout.tar_path(dataset, name)
    for _, samples in rewrite.pieces(dataset, name):
        for sample in samples:
            group = next(tar.groups(sample, where, whole=False))
            try:
                known = tar.metadata_of(sample, group, where)
            except DataError:  # reading such a sample quarantines it; its picture may be on the list all the same
                known = {}
            picture = tar.image_member(group)
            if picture is not None and not _text(known.get("sha256")):
                known["sha256"] = hashlib.sha256(sample[picture.data : picture.data + picture.size]).hexdigest()
            yield known | {"key": group.key}


def _remove_shard(dataset: str, name: str) -> None:
    """The tar last: while it is there the deletion is not complete."""
    for path in (layout.index_path, layout.indexed_path, layout.provenance_path, layout.tar_path):
        storage.remove(path(dataset, name))


def _remove_spools(dataset: str) -> None:
    """Journals of a cluster's ingest that was interrupted hold pictures; nobody else holds the dataset now."""
    for folder in storage.list_folders(dataset):
        if re.fullmatch(r"spool-[0-9a-f-]+", folder):
            storage.remove_tree(storage.join(dataset, folder))
            log.info("purge: removed %s, unpublished pictures of an interrupted ingest; they are fetched again when it goes on", folder)


def _remove_half_published(dataset: str, whole: set[str]) -> None:
    """A tar of ingest that no outcome table speaks of was left by a kill just before its table: nobody can tell what is in it."""
    if not storage.exists(storage.join(dataset, inputs.RECORD)):
        return  # another tool's folder
    for file in storage.list_files(dataset):
        name = file.removesuffix(".tar")
        if re.fullmatch(r"\d+(-\d+)?\.tar", file) and name not in whole:
            _remove_shard(dataset, name)
            log.info("purge: removed shard %s of an interrupted ingest, which was not published; it is fetched again when that goes on", name)


def _numbers(dataset: str) -> list[int]:
    names = storage.list_files(storage.join(dataset, "purges"))
    return sorted(int(name.removesuffix(".parquet")) for name in names if name.endswith(".parquet") and not name.startswith("."))


def _plan_path(dataset: str, number: int) -> str:
    return storage.join(dataset, "purges", f"{number:05d}.parquet")


def _entries_path(dataset: str, number: int) -> str:
    return storage.join(dataset, "purges", f"{number:05d}.json")


def _write_plan(dataset: str, number: int, taken: Sequence[Taken]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, pa.string()) for name in COLUMNS])
    with storage.atomic_write(_plan_path(dataset, number)) as file:
        pq.write_table(pa.Table.from_pylist([asdict(one) for one in taken], schema=schema), file)


def _read_plan(dataset: str, number: int) -> list[Taken]:
    return [Taken(**row) for row in parquet.read_table(_plan_path(dataset, number)).to_pylist()]
