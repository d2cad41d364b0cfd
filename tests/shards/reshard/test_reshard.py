"""`albef shards reshard`: which samples, in which order, in which shards, whoever dies meanwhile."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from collections import Counter, namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import s3fs
from faulty_front import FAULTS, FaultyFront
from hypothesis import given
from hypothesis import strategies as st
from wire_proxy import WireProxy

from pipeline.core import storage
from pipeline.core.errors import ConfigError, DataError, Stopped, UserError
from shards import foreign, layout, provenance, random_stream, rewrite
from shards.dataset import Dataset
from shards.manifest import read_manifest
from shards.reshard import cut as reshard_cut
from shards.reshard import request as reshard_request
from shards.reshard.cut import cut
from shards.reshard.request import ROW, Portion, Request, Work
from shards.reshard.reshard import Resharded, pinned, reshard
from shards.verify import verify
from shards.writer import tar_bytes

from ..conftest import MakeDataset
from ..foreign_tars import read_by_webdataset, write_laion

FIRST = 700_000_000
WHERE = ("width >= 60", "NSFW == 'UNLIKELY'", "similarity > 0.2")


@pytest.fixture(scope="module")
def laion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """70 samples in 4 tars, one of them empty, indexed."""
    folder = write_laion(tmp_path_factory.mktemp("laion"), [30, 25, 0, 15], FIRST)
    foreign.index_folder(str(folder))
    return folder


def made(out: str, *folders: Path | str, workers: int = 1, spill: str | None = None, **options: Any) -> Resharded:
    return reshard(Request(tuple(pinned(str(folder)) for folder in folders), **options), out, workers, spill)


def files(out: str) -> dict[str, str]:
    """Every file below `out` by its sha256, but for the manifest, which names the inputs."""
    fs, inner = storage.filesystem(out)
    found = {path[len(inner) :].lstrip("/"): hashlib.sha256(fs.cat_file(path)).hexdigest() for path in fs.find(inner)}
    return {name: digest for name, digest in found.items() if not name.startswith("manifests/")}


def is_kept(sample: dict[str, Any]) -> bool:
    facts = json.loads(sample["json"])
    return facts["width"] >= 60 and facts["NSFW"] == "UNLIKELY" and facts["similarity"] > 0.2


def test_webdataset_reads_every_sample_unchanged_in_the_order_of_its_random_number(laion: Path, tmp_path: Path) -> None:
    before = read_by_webdataset(laion)
    result = made(str(tmp_path / "out"), laion, shuffle=7, samples_per_shard=9)
    keys = random_stream.item_keys(7, 0, np.arange(len(before)))
    assert read_by_webdataset(tmp_path / "out") == [before[number] for number in np.argsort(keys).tolist()]
    assert [shard.samples for shard in result.manifest.shards] == [9] * 7 + [7]
    assert not verify(str(tmp_path / "out"))


def test_conditions_leave_out_what_they_say_and_count_each_by_the_first_it_does_not_meet(laion: Path, tmp_path: Path) -> None:
    before = read_by_webdataset(laion)
    for shuffle in (None, 3):
        result = made(str(tmp_path / f"out-{shuffle}"), laion, where=WHERE, shuffle=shuffle, samples_per_shard=8)
        after = read_by_webdataset(tmp_path / f"out-{shuffle}")
        expected = [sample for sample in before if is_kept(sample)]
        assert sorted(after, key=lambda sample: sample["__key__"]) == expected
        assert (after == expected) == (shuffle is None), "only without a shuffle they stay in order"
        assert result.manifest.outcomes == {"success": len(expected), **result.left_out}
        assert sum(result.manifest.outcomes.values()) == len(before)
        assert set(result.left_out) == {f"not ({text})" for text in WHERE}


def test_the_bytes_depend_on_the_request_alone(laion: Path, tmp_path: Path, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers, small portions, runs elsewhere, cuts in several parts, S3: nothing shows."""
    options: dict[str, Any] = {"where": WHERE[:2], "shuffle": 5, "samples_per_shard": 9}
    fingerprint = made(str(tmp_path / "one"), laion, **options).manifest.fingerprint
    expected = files(str(tmp_path / "one"))
    assert not [name for name in expected if name.startswith("reshard")]
    tars = {name: digest for name, digest in expected.items() if name.endswith((".tar", ".albef"))}
    made(str(tmp_path / "two"), laion, workers=2, spill=str(tmp_path / "spill"), **options)
    assert files(str(tmp_path / "two")) == expected
    assert not list((tmp_path / "spill").iterdir()), "the runs are removed"
    with monkeypatch.context() as small:
        small.setattr(reshard_request, "PORTION_BYTES", 20_000)
        small.setattr(reshard_cut, "AT_ONCE", 6)
        made(str(tmp_path / "three"), laion, **options)
    assert files(str(tmp_path / "three")) == expected
    for path in laion.glob("*.tar"):
        storage.write_bytes(f"{s3_bucket}/laion/{path.name}", path.read_bytes())
    foreign.index_folder(f"{s3_bucket}/laion")
    for out in (f"{s3_bucket}/out", str(tmp_path / "four")):
        assert made(out, f"{s3_bucket}/laion", **options).manifest.fingerprint == fingerprint
        found = files(out)
        assert {name: digest for name, digest in found.items() if name.endswith((".tar", ".albef"))} == tars
        assert set(found) == set(expected)


def test_another_seed_gives_another_order_and_no_order_remembers_the_old_one(tmp_path: Path, make_dataset: MakeDataset) -> None:
    folder = make_dataset([100, 100]).folder
    keys = []
    for seed in range(4):
        made(str(tmp_path / f"{seed}"), folder, shuffle=seed)
        keys.append([sample["__key__"] for sample in read_by_webdataset(tmp_path / f"{seed}")])
        rank = {key: place for place, key in enumerate(sorted(keys[-1]))}
        correlation = np.corrcoef([rank[key] for key in keys[-1]], range(200))[0, 1]
        assert abs(correlation) < 4 / 200**0.5
    assert len({tuple(order) for order in keys}) == 4


@given(
    st.lists(st.integers(1, 40).map(lambda blocks: 512 * blocks), max_size=60), st.integers(1, 9), st.none() | st.integers(10_240, 60_000), st.integers(1, 7)
)
def test_a_shard_is_filled_until_one_more_sample_would_be_too_much(lengths: list[int], max_samples: int, max_bytes: int | None, part: int) -> None:
    expected, count, size = [], 0, 0
    for order, length in enumerate(lengths):
        if not count or count == max_samples or (max_bytes is not None and tar_bytes(size + length) > max_bytes):
            expected.append(order)
            count, size = 0, 0
        count, size = count + 1, size + length
    orders, sizes = np.arange(len(lengths), dtype=np.uint64), np.array(lengths, np.uint64)
    parts = [(orders[start : start + part], sizes[start : start + part]) for start in range(0, len(lengths), part)]
    assert cut(parts, max_samples, max_bytes) == expected


def test_planning_takes_memory_for_some_of_the_samples_however_many_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once, portions, rows = 4_000, 60, 2_000
    monkeypatch.setattr(reshard_cut, "AT_ONCE", at_once)
    work, made_up = Work(str(tmp_path), str(tmp_path / "runs"), "x"), []
    orders = random_stream.item_keys(1, 0, np.arange(portions * rows)).reshape(portions, rows)
    for number in range(portions):
        made_up.append(Portion(number, "f", "f", f"{number:05d}", 0, rows, number * rows, 0, 0, "list"))
        table = np.zeros(rows, ROW)
        table["order"], table["length"] = np.sort(orders[number]), 512
        storage.write_bytes(work.rows_path(made_up[-1]), table.tobytes(), durable=False)
    tracemalloc.start()
    first_of = cut(reshard_cut.in_order(work, made_up, Request((), shuffle=1), portions * rows), 1_000, None)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert first_of == np.sort(orders.ravel())[::1_000].tolist()
    assert peak < 200 * at_once < portions * rows * 16, "less than order and length of all of them"


def test_tars_stay_below_the_bytes_that_were_asked_for(laion: Path, tmp_path: Path) -> None:
    made(str(tmp_path / "out"), laion, bytes_per_shard=40_000)
    sizes = [path.stat().st_size for path in sorted((tmp_path / "out").glob("*.tar"))]
    assert len(sizes) > 1
    assert max(sizes) <= 40_000
    assert read_by_webdataset(tmp_path / "out") == read_by_webdataset(laion)


def test_samples_of_several_datasets_keep_their_source(laion: Path, make_dataset: MakeDataset, tmp_path: Path) -> None:
    ours = make_dataset([12, 8])
    first = made(str(tmp_path / "first"), laion, ours.folder, shuffle=1, samples_per_shard=25)
    counts = {str(laion): 70, "made": 20}
    assert first.manifest.config["reshard"]["samples_by_source"] == counts
    again = made(str(tmp_path / "again"), tmp_path / "first", shuffle=2, where=("sample.source == 'made'",))
    assert again.manifest.config["reshard"]["samples_by_source"] == {"made": 20}
    dataset = Dataset.open(str(tmp_path / "first"))
    rows = [row for shard in first.manifest.shards for row in pq.read_table(layout.provenance_path(dataset.folder, shard.name)).to_pylist()]
    assert Counter(row["source"] for row in rows) == counts
    for number, row in enumerate(rows):
        old = Dataset.open(row["dataset"])
        start = int(old.shard_starts[[shard.name for shard in old.manifest.shards].index(row["shard"])])
        old_sample, new_sample = old.read(start + row["row"]), dataset.read(number)
        assert (new_sample, new_sample.key, row["original_key"]) == (old_sample, row["key"], row["key"])


def test_equal_keys_are_refused_or_all_get_new_ones(laion: Path, tmp_path: Path) -> None:
    other = write_laion(tmp_path / "other", [6], FIRST)
    foreign.index_folder(str(other))
    with pytest.raises(DataError, match=r"^6 keys are there more than once, such as that of \S+00000.tar row \d and \S+00000.tar row \d; --rename-keys .*$"):
        made(str(tmp_path / "out"), laion, other)
    assert not (tmp_path / "out").exists()
    made(str(tmp_path / "out"), laion, other, rename_keys=True, samples_per_shard=40)
    after = read_by_webdataset(tmp_path / "out")
    assert [sample["__key__"] for sample in after] == [f"{shard:05d}{row:04d}" for shard, count in ((0, 40), (1, 36)) for row in range(count)]
    before = read_by_webdataset(laion) + read_by_webdataset(other)
    assert [{**sample, "__key__": ""} for sample in after] == [{**sample, "__key__": ""} for sample in before]
    assert pq.read_table(tmp_path / "out" / "provenance" / "00001.parquet")["original_key"].to_pylist() == [sample["__key__"] for sample in before[40:]]
    assert not verify(str(tmp_path / "out"))


def test_a_damaged_sample_stops_it_or_is_left_out_by_name(make_dataset: MakeDataset, flip_byte: Callable[[str, int], None], tmp_path: Path) -> None:
    folder = make_dataset([6, 3]).folder
    flip_byte(layout.tar_path(folder, "00001"), 600)
    with pytest.raises(DataError, match=r"^\S+00001.tar row 0: checksum differs [^\n]*--skip-damaged$"):
        made(str(tmp_path / "out"), folder, shuffle=1)
    result = reshard(Request((pinned(folder),), shuffle=1), str(tmp_path / "out"), 1, skip_damaged=True)
    assert result.left_out == {"damaged": 1}
    assert [line.split(":")[0] for line in result.damaged] == [f"{folder}/00001.tar row 0"]
    assert result.manifest.num_samples == 8
    assert not (tmp_path / "out" / "reshard").exists()


def test_damage_that_an_unfinished_reshard_left_out_stops_one_that_is_not_to_leave_it_out(
    make_dataset: MakeDataset, flip_byte: Callable[[str, int], None], tmp_path: Path
) -> None:
    folder, out = make_dataset([6, 3]).folder, str(tmp_path / "out")
    flip_byte(layout.tar_path(folder, "00001"), 600)
    request = Request((pinned(folder),), shuffle=1)

    def stops(what: str, _done: int, _total: int) -> None:
        if what == "writing":
            raise Stopped("stopped early")

    with pytest.raises(Stopped):
        reshard(request, out, 1, skip_damaged=True, progress=stops)
    with pytest.raises(DataError, match=r"^\S+00001.tar row 0: checksum differs [^\n]*repeat that with --skip-damaged, or remove \S+/out$"):
        reshard(request, out, 1)
    assert not (tmp_path / "out" / "MANIFEST").exists()
    assert reshard(request, out, 1, skip_damaged=True).left_out == {"damaged": 1}


def test_a_second_call_finds_what_the_first_has_done(laion: Path, tmp_path: Path) -> None:
    first = made(str(tmp_path / "out"), laion, where=WHERE, shuffle=1)
    before = files(str(tmp_path / "out"))
    assert made(str(tmp_path / "out"), laion, where=WHERE, shuffle=1) == first
    assert files(str(tmp_path / "out")) == before


def test_provenance_goes_with_the_samples_when_some_are_purged(laion: Path, tmp_path: Path) -> None:
    from ingest.purge import purge

    out = str(tmp_path / "out")
    result = made(out, laion, shuffle=1, samples_per_shard=40)
    gone = read_by_webdataset(tmp_path / "out")[3]["__key__"]
    (tmp_path / "list.txt").write_text(f"http://a.example/{gone}.jpg\n")
    assert [one.key for one in purge(out, [str(tmp_path / "list.txt")])] == [gone]
    newest = read_manifest(out)
    assert provenance.shards(out) == {shard.name for shard in newest.shards}
    keys = [key for shard in newest.shards for key in pq.read_table(layout.provenance_path(out, shard.name))["key"].to_pylist()]
    assert Counter(keys) == Counter(sample["__key__"] for sample in read_by_webdataset(tmp_path / "out"))
    assert len(keys) == result.manifest.num_samples - 1


def bad_place(kind: str, laion: Path, tmp_path: Path) -> str:
    places = {"input": laion, "inside": laion / "new", "around": laion.parent, "link": tmp_path / "link", "file": tmp_path / "file", "full": tmp_path / "full"}
    (tmp_path / "link").symlink_to(laion)
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    if kind == "dataset":
        made(str(tmp_path / "dataset"), laion)
    return str(places.get(kind, tmp_path / kind))


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ("input", "overlaps the input"),
        ("inside", "overlaps the input"),
        ("around", "overlaps the input"),
        ("link", "overlaps the input"),
        ("file", "is a file; give a folder"),
        ("full", r"not empty \(thesis.tex\)"),
        ("dataset", "holds a dataset already"),
        ("file/below", "a part of its path is a file"),
    ],
)
def test_a_bad_place_is_refused_in_one_line_and_nothing_is_touched(kind: str, found: str, laion: Path, tmp_path: Path) -> None:
    out = bad_place(kind, laion, tmp_path)
    before = as_it_lies(laion, tmp_path)
    with pytest.raises(DataError, match=rf"^[^\n]*{found}[^\n]*$"):
        made(out, laion, shuffle=3)
    assert as_it_lies(laion, tmp_path) == before


def as_it_lies(*folders: Path) -> dict[Path, int]:
    """When each of them, what is in it and the folder around it changed last; other tests' folders lie around it too, and are not looked into."""
    return {path: path.lstat().st_mtime_ns for folder in folders for path in (folder.parent, folder, *folder.rglob("*"))}


def test_bad_inputs_are_refused_in_one_line_before_anything_is_written(laion: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    cases: list[tuple[type[UserError], str, Callable[[], object]]] = [
        (DataError, "no dataset here", lambda: made(out, tmp_path)),
        (DataError, "given twice", lambda: made(out, laion, laion)),
        (DataError, "no widht in the json .* did you mean width", lambda: made(out, laion, where=("widht > 3",))),
        (ConfigError, "write it like", lambda: made(out, laion, where=("width = 3",))),
        (DataError, "no sample is left", lambda: made(out, laion, where=("width > 9000",))),
    ]
    for kind, found, call in cases:
        with pytest.raises(kind, match=rf"^[^\n]*{found}[^\n]*$"):
            call()
        assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_an_unfinished_reshard_goes_on_with_its_own_settings_alone(laion: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "reshard").mkdir(parents=True)
    request = Request((pinned(str(laion)),), shuffle=3)
    (out / "reshard" / "request.json").write_text(json.dumps(request.as_json()))
    with pytest.raises(DataError, match=r"unfinished reshard of other settings lies here \(shuffle: 3, now 4\)"):
        made(str(out), laion, shuffle=4)
    (out / "reshard" / "request.json").write_text(json.dumps(request.as_json()).replace('"manifest": 1', '"manifest": 9'))
    with pytest.raises(DataError, match=r"unfinished reshard of \S+ \(manifest 9\) lies here, now it is \S+ \(manifest 1\); repeat that"):
        made(str(out), laion, shuffle=3)


def test_a_disk_that_is_too_small_is_known_before(laion: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    total = sum(path.stat().st_size for path in laion.glob("*.tar"))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(0, 0, int(1.5 * total)))
    with pytest.raises(DataError, match=r"^\S+: 0.0 GB needed, 0.0 GB free; make room, or let --spill point elsewhere$"):
        made(str(tmp_path / "out"), laion, shuffle=3)
    assert not (tmp_path / "out").exists()
    made(str(tmp_path / "out"), laion)


def command(*arguments: str) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.app", "shards", "reshard", *arguments],
        env=environment, start_new_session=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


KILLS = 6


@pytest.mark.parametrize("place", ["disk", "s3"])
@pytest.mark.slow
def test_killed_at_any_moment_it_ends_with_the_same_bytes_and_leaves_nothing(place: str, laion: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    root = request.getfixturevalue("s3_bucket") if place == "s3" else str(tmp_path)
    arguments = [str(laion), "--shuffle", "3", "--where", WHERE[0], "--samples-per-shard", "2", "--workers", "2"]
    began = time.monotonic()
    whole = command(*arguments[:1], f"{root}/whole", *arguments[1:])
    assert whole.wait(120) == 0, whole.communicate()
    takes_s = time.monotonic() - began
    expected, dice, landed = files(f"{root}/whole"), random.Random(0), 0
    for number in range(KILLS):
        out = f"{root}/killed{number}"
        process = command(*arguments[:1], out, *arguments[1:])
        time.sleep(dice.uniform(0, takes_s))
        landed += process.poll() is None
        if number % 2 or process.poll() is not None:
            with_children = os.killpg if process.poll() is None else (lambda *_: None)
            with_children(process.pid, signal.SIGKILL)
        else:
            process.kill()  # the workers notice by themselves
        process.wait(10)
        time.sleep(1.5)
        again = command(*arguments[:1], out, *arguments[1:])
        _, errors = again.communicate(timeout=120)
        assert again.returncode == 0, errors
        assert files(out) == expected
    assert landed >= KILLS // 2


def test_a_signal_stops_it_with_exit_code_4_and_it_goes_on(laion: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    arguments = (str(laion), out, "--shuffle", "3", "--samples-per-shard", "1", "--workers", "1")
    process = command(*arguments)
    while not (tmp_path / "out" / "00003.tar").exists() and process.poll() is None:
        time.sleep(0.005)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors.strip().splitlines()[-1]) == (4, "albef: stopped early: received SIGTERM; run the same command again to continue")
    written = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "reshard" / "written").iterdir()}
    assert 0 < len(written) < 70
    tars = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar") if f"{path.stem}.json" in written}
    assert made(out, laion, shuffle=3, samples_per_shard=1).manifest.num_samples == 70
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in tars} == tars, "what was complete is not written again"


def test_requests_that_fail_go_on_at_the_byte(laion: Path, tmp_path: Path, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"shuffle": 3, "samples_per_shard": 20, "where": WHERE[:1]}
    for path in laion.glob("*.tar"):
        storage.write_bytes(f"{s3_bucket}/laion/{path.name}", path.read_bytes())
    foreign.index_folder(f"{s3_bucket}/laion")
    with FaultyFront(int(os.environ["AWS_ENDPOINT_URL"].rsplit(":", 1)[1]), 0.3, 1, [fault for fault in FAULTS if fault != "stalled"]) as front:
        monkeypatch.setenv("AWS_ENDPOINT_URL", front.endpoint)
        s3fs.S3FileSystem.clear_instance_cache()
        rewrite.own_transport.cache_clear()  # it keeps its connections
        faulty = made(f"{s3_bucket}/out", f"{s3_bucket}/laion", **options)
    assert faulty.manifest.fingerprint == made(str(tmp_path / "out"), laion, **options).manifest.fingerprint
    assert front.injected.total() > 5


def test_a_store_that_goes_away_stops_it_resumably(laion: Path, tmp_path: Path, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"shuffle": 3, "samples_per_shard": 20}
    with WireProxy(int(os.environ["AWS_ENDPOINT_URL"].rsplit(":", 1)[1])) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        monkeypatch.setattr("shards.reshard.write.PATIENCE_S", 0.0)
        s3fs.S3FileSystem.clear_instance_cache()
        out = f"{s3_bucket}/out"

        def dies(what: str, done: int, _total: int) -> None:
            if what == "writing" and done > 0:
                proxy.die()

        with pytest.raises(Stopped, match=r"^[^\n]*run the same command again[^\n]*$"):
            reshard(Request((pinned(str(laion)),), **options), out, 1, progress=dies)
        proxy.revive()
        assert made(out, laion, **options).manifest.fingerprint == made(str(tmp_path / "out"), laion, **options).manifest.fingerprint
        assert not [name for name in files(out) if name.startswith("reshard")]
