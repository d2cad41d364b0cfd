"""Ingest as a whole, over real HTTP: every row accounted for, killed at any moment, resumed, refused."""

import hashlib
import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from ingest_command import processes, running
from waiting import wait_until

from ingest import ingest
from ingest.config import CaptionConfig, FilterConfig, IngestConfig
from ingest.progress import read_all
from pipeline.core import storage
from pipeline.core.errors import BelowFloor, DataError, Stopped, UserError
from pipeline.core.run_directory import RunDirectory
from shards import layout
from shards.dataset import Dataset
from shards.manifest import read_manifest

BAD = {
    "status/404": "http_404",
    "status/500": "http_5xx",
    "truncated/1": "truncated",
    "longer/1": "truncated",
    "html/1": "not_an_image",
    "empty/1": "not_an_image",
    "slow/1": "timeout",
    "private/1": "blocked_address",
    "loop/1": "too_many_redirects",
    "noai/1": "opted_out",
    "bomb/1": "too_large",
}
Rows = list[dict[str, Any]]


@pytest.fixture
def listed(tmp_path: Path, web: Any) -> Callable[..., IngestConfig]:
    """Write a list of rows (path on the web, captions) and make a configuration for it."""

    def make(rows: Rows, columns: Sequence[str] = (), **settings: Any) -> IngestConfig:
        path = tmp_path / "list.jsonl"
        path.write_text("".join(json.dumps({"url": web.url(row["path"]), **row}) + "\n" for row in rows))
        source = {"type": "jsonl", "path": str(path), "columns": list(columns)}
        values: dict[str, Any] = {"sources": [source], "output": str(tmp_path / "dataset"), "samples_per_shard": 20}
        values["fetch"] = {"allow_loopback": True, "timeout_s": 2, "attempts": 1}
        values["engine"] = {"processes": 2, "concurrency": 4}
        return IngestConfig.model_validate(values | settings)

    return make


def good_rows(number: int) -> Rows:
    return [{"path": f"good/{n}", "caption": [f"picture {n}", f"number {n}"]} for n in range(number)]


def tar_hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.tar"))}


def outcome_rows(output: Path) -> Rows:
    return [row for path in sorted((output / "outcomes").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def status(run_folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((run_folder / "status.json").read_text())
    return record


def test_every_row_of_a_hostile_list_ends_in_one_outcome_and_the_good_ones_in_tars(tmp_path: Path, web: Any, listed: Callable[..., IngestConfig]) -> None:
    rows = good_rows(30) + [{"path": path, "caption": "x"} for path in BAD]
    rows += [{"path": "good/3", "caption": ['an unbalanced " quote']}, {"path": "good/4", "caption": ""}]
    config = listed(rows)
    result = ingest.run(config, tmp_path / "run")

    counted = {"rows": 43, "pictures": 41, "merged": 1, "captions": 72, "rejected": {"no_caption": 1}}
    assert {name: result["rows"][name] for name in counted} == counted
    assert sum(result["outcomes"].values()) == 41
    assert result["outcomes"]["success"] == result["samples"] == 30
    assert (status(tmp_path / "run")["state"], status(tmp_path / "run")["outcomes"]) == ("finished", result["outcomes"])
    found = {row["url"].removeprefix(web.url()): row for row in outcome_rows(tmp_path / "dataset")}
    assert {path: found[path]["outcome"] for path in BAD} == BAD
    assert web.asked["good/3"] == 1, "a picture with captions in two rows is fetched once"

    dataset = Dataset.open(config.output)
    assert dataset.num_samples == 30
    third = next(sample for sample in map(dataset.read, range(30)) if sample.captions[0] == "picture 3")
    assert third.captions == ("picture 3", "number 3", 'an unbalanced " quote')
    assert (third.metadata["width"], third.metadata["height"], third.metadata["uid"]) == (96, 64, found["good/3"]["uid"])
    assert hashlib.sha256(third.image).hexdigest() == third.metadata["sha256"] == found["good/3"]["sha256"]
    assert pq.read_table(tmp_path / "dataset" / "rejected.parquet").to_pylist()[0]["reason"] == "no_caption"

    asked, started = web.asked.total(), time.monotonic()
    again = ingest.run(config, tmp_path / "run")
    assert time.monotonic() - started < 2
    assert again["outcomes"] == result["outcomes"]
    assert web.asked.total() == asked, "nothing is fetched twice"

    with pytest.raises(BelowFloor, match=r"73\.2 % success.*success_floor asks for 90 %"):
        ingest.run(config.model_copy(update={"success_floor": 0.9}), tmp_path / "run")
    with pytest.raises(DataError, match="samples_per_shard 20, now 10"):
        ingest.run(config.model_copy(update={"samples_per_shard": 10}), tmp_path / "run")
    with pytest.raises(DataError, match=r"made from filters\.captions\.min_words 1, now 2;"):
        ingest.run(config.model_copy(update={"filters": FilterConfig(captions=CaptionConfig(min_words=2))}), tmp_path / "run")
    with pytest.raises(DataError, match="made from other lists"):
        ingest.run(listed(rows[1:]), tmp_path / "run")
    assert tar_hashes(tmp_path / "dataset") == {f"{shard.name}.tar": shard.sha256 for shard in read_manifest(config.output).shards}


def test_further_columns_reach_the_samples_json_and_the_outcome_table(tmp_path: Path, listed: Callable[..., IngestConfig]) -> None:
    rows = [{**row, "clip": number / 10, "width": "the list's"} for number, row in enumerate(good_rows(3), start=1)]
    config = listed(rows, columns=["clip", "width"], filters={"columns": [{"column": "clip", "min": 0.2}]})
    result = ingest.run(config, tmp_path / "run")
    assert result["rows"]["rejected"] == {"clip_too_low": 1}
    dataset = Dataset.open(config.output)
    assert [(sample.metadata["clip"], sample.metadata["width"]) for sample in map(dataset.read, range(2))] == [(0.2, 96), (0.3, 96)]
    assert [json.loads(row["extra"])["clip"] for row in outcome_rows(tmp_path / "dataset")] == [0.2, 0.3]


@pytest.mark.parametrize("kill", [pytest.param(os.kill, id="parent_alone"), pytest.param(os.killpg, id="whole_group", marks=pytest.mark.slow)])
def test_killed_and_resumed_it_fetches_what_is_missing_and_gives_the_same_tars(
    kill: Callable[[int, int], None], tmp_path: Path, web: Any, listed: Callable[..., IngestConfig]
) -> None:
    rows = [*good_rows(60), {"path": "status/404", "caption": "x"}]
    whole = ingest.run(listed(rows, output=str(tmp_path / "whole")), tmp_path / "whole_run")
    web.asked.clear()
    web.delay_s = 0.2  # so that it takes about 60 * 0.2 / 8 = 1.5 s
    config = listed(rows, output=str(tmp_path / "killed"))
    with running(config, tmp_path / "killed_run") as process:
        wait_until(lambda: web.asked.total() >= 30)
        kill(process.pid, signal.SIGKILL)
        process.wait()
        wait_until(lambda: not processes(tmp_path / "killed_run"), 10)
    asked = web.asked.total()
    time.sleep(0.5)
    assert web.asked.total() == asked < 61, "the kill came too late, or somebody went on fetching after it"
    web.delay_s = 0.0
    (tmp_path / "killed" / ".00001.tar.0123456789ab.tmp").write_bytes(b"half")
    resumed = ingest.run(config, tmp_path / "killed_run")
    assert not list((tmp_path / "killed").rglob(".*.tmp"))
    assert resumed["outcomes"] == whole["outcomes"]
    assert tar_hashes(tmp_path / "killed") == tar_hashes(tmp_path / "whole")
    assert resumed["fingerprint"] == whole["fingerprint"]
    assert 61 <= web.asked.total() <= 61 + config.engine.processes * config.engine.concurrency, "what was in flight may be asked for again, nothing else"


def test_a_dataset_on_s3_is_the_same_and_a_missing_bucket_is_named_before_any_fetch(
    tmp_path: Path, web: Any, listed: Callable[..., IngestConfig], s3_bucket: str
) -> None:
    config = listed(good_rows(25), output=f"{s3_bucket}/set/", engine={"processes": 1})
    with pytest.raises(DataError, match="no-such-bucket-x") as caught:
        ingest.run(config.model_copy(update={"output": "s3://no-such-bucket-x/set"}), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not web.asked
    fs, bucket = storage.filesystem(s3_bucket)
    fs.call_s3("create_multipart_upload", Bucket=bucket, Key="set/00000.tar")  # as a killed worker leaves it
    result = ingest.run(config, tmp_path / "run")
    assert (result["samples"], result["shards"]) == (25, 2)
    assert not fs.call_s3("list_multipart_uploads", Bucket=bucket).get("Uploads"), "a dead run's uploads are billed until somebody ends them"
    assert storage.list_folders(config.output) == ["index", "manifests", "outcomes"], "the lease is given back"
    assert Dataset.open(config.output).read(24).captions == ("picture 24", "number 24")


def test_a_missing_list_is_the_users_mistake_and_leaves_nothing(tmp_path: Path, listed: Callable[..., IngestConfig]) -> None:
    config = listed(good_rows(1))
    (tmp_path / "list.jsonl").unlink()
    with pytest.raises(DataError, match=r"list\.jsonl: not found"):
        ingest.run(config, tmp_path / "run")
    assert not (tmp_path / "dataset").exists()
    assert not (tmp_path / "run").exists()


def test_a_place_that_cannot_be_written_is_named_before_any_fetch(tmp_path: Path, web: Any, listed: Callable[..., IngestConfig]) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match="file"):
        ingest.run(listed(good_rows(1), output=str(tmp_path / "file" / "dataset")), tmp_path / "run")
    assert not web.asked


def test_two_ingests_do_not_write_one_folder_at_once(tmp_path: Path, web: Any, listed: Callable[..., IngestConfig]) -> None:
    config = listed(good_rows(1))
    with RunDirectory(Path(config.output) / "outcomes").locked(), pytest.raises(UserError, match="in use by process"):
        ingest.run(config, tmp_path / "run")
    assert not web.asked


@pytest.mark.slow
def test_a_stop_signal_ends_it_with_exit_code_4_and_nothing_is_fetched_twice(tmp_path: Path, web: Any, listed: Callable[..., IngestConfig]) -> None:
    web.delay_s = 0.2
    config = listed(good_rows(60))
    with running(config, tmp_path / "run") as process:
        wait_until(lambda: web.asked.total() >= 20)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
    assert Stopped.__name__ in errors.decode()
    assert "received SIGTERM" in errors.decode()
    assert not processes(tmp_path / "run")
    assert status(tmp_path / "run")["state"] == "stopped"
    assert 20 - config.engine.processes * config.engine.concurrency <= status(tmp_path / "run")["done"] < 60
    web.delay_s = 0.0
    assert ingest.run(config, tmp_path / "run")["samples"] == 60
    assert web.asked.total() <= 60 + config.engine.processes * config.engine.concurrency


@pytest.mark.slow
def test_a_killed_worker_is_noticed_and_the_run_goes_on_by_itself(tmp_path: Path, web: Any, listed: Callable[..., IngestConfig]) -> None:
    web.delay_s = 0.2
    config = listed(good_rows(60))
    with running(config, tmp_path / "run") as process:
        progress = []
        while not any(shard.worker for shard in progress):
            progress = [shard for folder in (tmp_path / "run" / "ingest").glob("*/spool/progress") for shard in read_all(str(folder))]
            time.sleep(0.05)
        os.kill(next(shard.worker for shard in progress if shard.worker), signal.SIGKILL)
        _, errors = process.communicate(timeout=90)
    assert process.returncode == 0, errors.decode()
    assert read_manifest(config.output).num_samples == 60
    assert web.asked.total() <= 60 + 2 * config.engine.processes * config.engine.concurrency


@pytest.mark.slow
def test_a_shard_that_vanished_before_publishing_is_fetched_again_and_no_other(tmp_path: Path, web: Any, listed: Callable[..., IngestConfig]) -> None:
    config = listed(good_rows(25))
    result = ingest.run(config, tmp_path / "run")
    storage.remove(layout.tar_path(config.output, "00001"))
    storage.remove(layout.newest_path(config.output))
    web.asked.clear()
    assert ingest.run(config, tmp_path / "run")["fingerprint"] == result["fingerprint"]
    assert web.asked.total() == 5


@pytest.mark.slow
def test_the_storage_that_goes_away_stops_the_run_resumably(tmp_path: Path, web: Any, listed: Callable[..., IngestConfig]) -> None:
    config = listed(good_rows(40))
    (tmp_path / "dataset" / "00001.tar").mkdir(parents=True)  # the tar cannot take its name
    with pytest.raises(Stopped, match=r"shard 00001: .*run the same command again"):
        ingest.run(config, tmp_path / "run")
    (tmp_path / "dataset" / "00001.tar").rmdir()
    assert ingest.run(config, tmp_path / "run")["samples"] == 40
    assert web.asked.total() == 40, "the journal kept what was fetched"


def test_an_output_that_is_a_file_and_a_damaged_record_are_named(tmp_path: Path, listed: Callable[..., IngestConfig]) -> None:
    config = listed(good_rows(1))
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file/outcomes: a part of its path is a file"):
        ingest.run(config.model_copy(update={"output": str(tmp_path / "file")}), tmp_path / "run")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "ingest.json").write_text("{")
    (tmp_path / "set" / "00000.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"set/ingest\.json: not the record"):
        ingest.run(config.model_copy(update={"output": str(tmp_path / "set")}), tmp_path / "run")


def test_a_first_start_that_found_nothing_usable_binds_nobody(tmp_path: Path, web: Any, listed: Callable[..., IngestConfig]) -> None:
    rows = good_rows(3)
    with pytest.raises(DataError, match="no row with a URL and a caption"):
        ingest.run(listed(rows, filters={"captions": {"min_words": 50}}), tmp_path / "run")
    assert ingest.run(listed(rows), tmp_path / "run")["samples"] == 3
    with pytest.raises(DataError, match=r"filters\.captions\.min_words 1, now 2"):
        ingest.run(listed(rows, filters={"captions": {"min_words": 2}}), tmp_path / "run")


@pytest.mark.slow
def test_what_a_block_list_names_is_not_published_though_it_was_fetched_before_the_stop(tmp_path: Path, web: Any, listed: Callable[..., IngestConfig]) -> None:
    web.delay_s = 0.2
    config = listed(good_rows(60), samples_per_shard=60)
    with running(config, tmp_path / "run") as process:
        wait_until(lambda: web.asked.total() >= 30)
        process.kill()
        process.wait()
    (tmp_path / "blocked.txt").write_text("".join(f"{web.url(path)}\n" for path in web.asked))
    web.delay_s = 0.0
    fetched_before = len(web.asked)
    outcomes = ingest.run(config.model_copy(update={"blocked": [str(tmp_path / "blocked.txt")]}), tmp_path / "run")["outcomes"]
    assert outcomes == {"success": 60 - fetched_before, "blocked_by_list": fetched_before}
