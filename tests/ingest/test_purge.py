"""Pictures leave a published dataset for good, killed at any moment, on disk, on S3, and from tars of another tool."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ingest import ingest, published, purge, retry
from ingest.config import IngestConfig
from ingest.urls import picture_uid
from pipeline.core import storage
from pipeline.core.errors import DataError
from shards import foreign, manifest, verify, writer
from shards.dataset import Dataset
from shards.manifest import read_manifest

PICTURES, PER_SHARD = 25, 10


def url(number: int) -> str:
    return f"http://a.example/{number}.jpg"


def picture(number: int) -> bytes:
    """Nobody decodes it here."""
    return np.random.default_rng(number).bytes(500 + number)


def write_dataset(folder: str, pictures: int = PICTURES) -> None:
    """As ingest leaves it, without the web: full shards, outcome tables, a manifest; every fifth row has failed."""
    entries, outcomes = [], Counter[str]()
    for first in range(0, pictures, PER_SHARD):
        name = f"{first // PER_SHARD:05d}"
        rows = [row_of(number) for number in range(first, min(first + PER_SHARD, pictures))]
        samples = [writer.SampleToWrite(row["key"], picture(int(row["key"])), "jpg", ("a caption",), row) for row in rows if row["outcome"] == "success"]
        entry = writer.write_shard(f"{folder}/{name}.tar", samples, "list")
        published.write(folder, name, rows, entry)
        entries.append(entry)
        outcomes.update(row["outcome"] for row in rows)
    manifest.publish(folder, entries, dict(outcomes), {"fingerprint": "x", "rows": {"pictures": pictures}})


def row_of(number: int) -> dict[str, Any]:
    row = {"key": f"{number:05d}", "uid": picture_uid(url(number)), "url": url(number), "source": "list", "extra": None, "detail": ""}
    if number % 5 == 4:
        return row | {"outcome": "timeout"}
    return row | {
        "outcome": "success",
        "sha256": hashlib.sha256(picture(number)).hexdigest(),
        "phash": f"{(number + 1) * 0x0123_4567_89AB_CDEF % 2**64:016x}",
    }


def write_list(tmp_path: Path) -> tuple[str, set[str]]:
    """Two of the first shard, all of the last, one that failed, one that was never there; returns the list and the keys to go."""
    phash = int(row_of(1)["phash"], 16) ^ 0b101
    lines = [url(0), f"{phash:016x}", row_of(20)["uid"], row_of(21)["sha256"], url(22), url(23), url(24), url(99)]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    return str(tmp_path / "list.txt"), {"00000", "00001", "00020", "00021", "00022", "00023"}


def assert_purged(folder: str, gone: set[str]) -> None:
    """The samples that should be there, and nothing of the others in any file."""
    dataset = Dataset.open(folder)
    assert {sample.key for sample in map(dataset.read, range(dataset.num_samples))} == {f"{n:05d}" for n in range(PICTURES) if n % 5 != 4} - gone
    assert not verify.verify(folder)
    listed = {shard.name for shard in dataset.manifest.shards}
    assert {name.removesuffix(".tar") for name in storage.list_files(folder) if name.endswith(".tar")} == listed
    assert {name.removesuffix(".albef") for name in storage.list_files(f"{folder}/index")} == listed
    for name in storage.list_files(folder):
        data = storage.read_bytes(f"{folder}/{name}")
        assert not [key for key in gone if picture(int(key)) in data], name


def assert_rows_purged(folder: str, gone: set[str]) -> None:
    rows = [row for name in published.names(folder) for row in published.rows(folder, name).to_pylist()]
    assert {row["key"] for row in rows if row["outcome"] == "purged"} == gone
    assert Counter(row["outcome"] for row in rows) == read_manifest(folder).outcomes == {"success": 20 - len(gone), "timeout": 5, "purged": len(gone)}
    for name in published.names(folder):
        assert published.is_whole(folder, published.read(folder, name))


def test_what_the_list_names_is_gone_and_the_rest_keeps_its_bytes(tmp_path: Path) -> None:
    folder = str(tmp_path / "set")
    write_dataset(folder)
    before = {sample.key: sample for sample in map(Dataset.open(folder).read, range(20))}
    path, gone = write_list(tmp_path)
    taken = purge.purge(folder, [path])
    assert {one.key for one in taken} == gone
    assert {(one.key, one.kind) for one in taken} >= {("00000", "url"), ("00001", "phash"), ("00020", "uid"), ("00021", "sha256")}
    assert_purged(folder, gone)
    assert_rows_purged(folder, gone)
    dataset = Dataset.open(folder)
    assert [shard.name for shard in dataset.manifest.shards] == ["00000-2", "00001"], "the last shard has no sample left"
    assert all(before[sample.key] == sample for sample in map(dataset.read, range(dataset.num_samples)))
    assert dataset.manifest.config["purges"] == [{"number": 2, "taken": 6, "shards": 2, "by": {"url": 3, "phash": 1, "uid": 1, "sha256": 1}}]
    assert purge.purge(folder, [path]) == []
    assert read_manifest(folder).number == 2
    (tmp_path / "list.txt").write_text(url(2))
    assert [one.new for one in purge.purge(folder, [path])] == ["00000-3"]
    assert_purged(folder, gone | {"00002"})
    assert_rows_purged(folder, gone | {"00002"})


class Killed(BaseException):
    """Stands for kill -9: nothing of ours catches it."""


WRITERS = ("write_bytes", "atomic_write", "remove")


@pytest.fixture
def killing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Let the n-th change of the storage die in place of happening, and every one after it."""
    changes = {name: getattr(storage, name) for name in WRITERS}
    left = [0]

    def dying(name: str) -> Callable[..., Any]:
        def change(*arguments: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return changes[name](*arguments, **options)

        return change

    def after(number: int) -> None:
        left[0] = number
        for name in WRITERS:
            monkeypatch.setattr(storage, name, dying(name))

    yield after
    monkeypatch.undo()


def test_killed_before_any_of_its_changes_it_ends_right_when_it_runs_again(
    tmp_path: Path, killing: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, gone = write_list(tmp_path)
    for number in range(100):
        folder = str(tmp_path / f"set{number}")
        write_dataset(folder)
        killing(number)
        try:
            purge.purge(folder, [path])
            finished = True
        except Killed:
            finished = False
        monkeypatch.undo()
        taken = purge.purge(folder, [path])
        assert {one.key for one in taken} in (gone, set())
        assert_purged(folder, gone)
        assert_rows_purged(folder, gone)
        if finished:
            break
    assert number > 10, "every change was tried"


def test_killed_and_run_with_another_list_it_leaves_nothing_of_either(tmp_path: Path, killing: Callable[[int], None], monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other.txt").write_text(url(2))
    path, gone = write_list(tmp_path)
    for number in range(4, 9):
        folder = str(tmp_path / f"set{number}")
        write_dataset(folder)
        killing(number)
        with pytest.raises(Killed):
            purge.purge(folder, [path])
        monkeypatch.undo()
        purge.purge(folder, [str(tmp_path / "other.txt")])
        purge.purge(folder, [path])
        assert_purged(folder, gone | {"00002"})
        assert_rows_purged(folder, gone | {"00002"})


def test_tars_of_another_tool_lose_what_their_jsons_or_their_bytes_name(tmp_path: Path) -> None:
    folder = tmp_path / "foreign"
    folder.mkdir()
    samples = [writer.SampleToWrite(f"{n:05d}", picture(n), "jpg", ("x",), {"url": url(n)} if n % 2 else {}) for n in range(PICTURES) if n % 5 != 4]
    writer.write_shard(str(folder / "part-0.tar"), samples[:12])
    writer.write_shard(str(folder / "part-1.tar"), samples[12:])
    for index in (folder / "index").iterdir():
        index.unlink()
    foreign.index_folder(str(folder))
    (tmp_path / "list.csv").write_text(f"url\n{url(1)}\n{row_of(22)['sha256']}\n{url(2)}\n")
    assert {one.key for one in purge.purge(str(folder), [str(tmp_path / "list.csv")])} == {"00001", "00022"}, "2 has no URL in its json"
    assert_purged(str(folder), {"00001", "00022"})
    assert read_manifest(str(folder)).outcomes == {"success": 18, "purged": 2}


def test_a_folder_without_a_dataset_and_one_in_use_are_named(tmp_path: Path) -> None:
    path, _ = write_list(tmp_path)
    with pytest.raises(DataError, match="no dataset here"):
        purge.purge(str(tmp_path / "nothing"), [path])
    assert not (tmp_path / "nothing").exists()


@pytest.mark.slow
def test_on_s3_it_is_the_same(tmp_path: Path, s3_bucket: str) -> None:
    folder = f"{s3_bucket}/set"
    write_dataset(folder)
    storage.write_bytes(f"{folder}/spool-0123456789abcdef-1/journals/00003/x.journal", picture(0))
    storage.write_bytes(f"{s3_bucket}/list.txt", Path(write_list(tmp_path)[0]).read_bytes())
    gone = write_list(tmp_path)[1]
    assert {one.key for one in purge.purge(folder, [f"{s3_bucket}/list.txt"])} == gone
    assert_purged(folder, gone)
    assert_rows_purged(folder, gone)
    assert set(storage.list_folders(folder)) == {"index", "manifests", "outcomes", "purges"}


def test_what_was_purged_is_not_fetched_again_and_a_round_adds_to_the_rest(tmp_path: Path, web: Any) -> None:
    rows = [{"url": web.url(f"good/{n}"), "caption": "x"} for n in range(6)] + [{"url": web.url(f"moody/{n}"), "caption": "x"} for n in range(3)]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values: dict[str, Any] = {"sources": [{"type": "jsonl", "path": str(tmp_path / "list.jsonl")}], "output": str(tmp_path / "set"), "samples_per_shard": 5}
    values |= {"fetch": {"allow_loopback": True, "timeout_s": 5, "attempts": 1}, "engine": {"processes": 1, "concurrency": 4}}
    config = IngestConfig.model_validate(values)
    web.down = True
    ingest.run(config, tmp_path / "run")
    (tmp_path / "block.txt").write_text(web.url("good/0"))
    assert len(purge.purge(config.output, [str(tmp_path / "block.txt")])) == 1
    web.asked.clear()
    assert ingest.run(config, tmp_path / "run")["outcomes"] == {"success": 5, "http_5xx": 3, "purged": 1}
    assert not web.asked
    web.down = False
    assert retry.run(config, tmp_path / "run")["outcomes"] == {"success": 8, "purged": 1}
    assert not [path for path in web.asked if path.startswith("good")]
    assert not verify.verify(config.output)


def test_a_table_of_an_older_version_has_no_phash(tmp_path: Path) -> None:
    write_dataset(str(tmp_path))
    path = published.outcome_path(str(tmp_path), "00000")
    pq.write_table(pq.read_table(path).drop_columns(["phash"]), path)
    assert published.rows(str(tmp_path), "00000")["phash"].type == pa.string()
    assert purge.purge(str(tmp_path), [write_list(tmp_path)[0]])


def test_a_shard_of_a_round_that_is_not_finished_loses_it_too_and_stays_unlisted(tmp_path: Path) -> None:
    folder = str(tmp_path / "set")
    write_dataset(folder)
    rows = [row_of(number) for number in range(30, 34)]
    samples = [writer.SampleToWrite(row["key"], picture(int(row["key"])), "jpg", ("x",), row) for row in rows]
    published.write(folder, "00003", rows, writer.write_shard(f"{folder}/00003.tar", samples, "list"))
    (tmp_path / "list.txt").write_text(f"{url(0)}\n{url(31)}\n")
    assert [(one.shard, one.new, one.key) for one in purge.purge(folder, [str(tmp_path / "list.txt")])] == [
        ("00000", "00000-2", "00000"),
        ("00003", "00003-2", "00031"),
    ]
    dataset = read_manifest(folder)
    assert [shard.name for shard in dataset.shards] == ["00000-2", "00001", "00002"]
    assert dataset.outcomes == {"success": 19, "timeout": 5, "purged": 1}, "rows of the round count when it is finished"
    shard = published.read(folder, "00003")
    assert published.is_whole(folder, shard)
    assert shard.outcomes == {"success": 3, "purged": 1}
    assert not storage.exists(f"{folder}/00003.tar")
    assert picture(31) not in storage.read_bytes(f"{folder}/00003-2.tar")


def test_a_tar_whose_outcome_table_a_kill_prevented_is_removed(tmp_path: Path) -> None:
    folder = str(tmp_path / "set")
    write_dataset(folder)
    storage.write_bytes(f"{folder}/ingest.json", b"{}")
    row = row_of(30)
    writer.write_shard(f"{folder}/00003.tar", [writer.SampleToWrite(row["key"], picture(30), "jpg", ("x",), row)], "list")
    (tmp_path / "list.txt").write_text(url(30))
    assert not purge.purge(folder, [str(tmp_path / "list.txt")])
    assert [name for name in storage.list_files(folder) if name.endswith(".tar")] == ["00000.tar", "00001.tar", "00002.tar"]
    assert storage.list_files(f"{folder}/index") == ["00000.albef", "00001.albef", "00002.albef"]
    assert not verify.verify(folder)
