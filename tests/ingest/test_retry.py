"""Rows that failed in a way that may pass, once more: further shards, each row counted once, killed and resumed."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ingest_command import processes, running

from ingest import ingest, published, retry
from ingest.config import IngestConfig
from ingest.outcomes import MAY_PASS, Outcome
from pipeline.core import storage
from pipeline.core.errors import BelowFloor, DataError
from shards import verify
from shards.dataset import Dataset
from shards.manifest import read_manifest

GOOD, MOODY, GONE = 30, 25, 5
PER_SHARD = 10


@pytest.fixture
def make_config(tmp_path: Path, web: Any) -> Callable[..., IngestConfig]:
    """A list whose rows alternate between good, moody and gone ones."""

    def make(output: str, **settings: Any) -> IngestConfig:
        paths = [f"moody/{n // 2}" if n % 2 else f"good/{n // 2}" for n in range(2 * MOODY)]
        paths += [f"good/{n}" for n in range(MOODY, GOOD)] + [f"status/404?{n}" for n in range(GONE)]
        (tmp_path / "list.jsonl").write_text("".join(json.dumps({"url": web.url(path), "caption": [path, "a second caption"]}) + "\n" for path in paths))
        values: dict[str, Any] = {"sources": [{"type": "jsonl", "path": str(tmp_path / "list.jsonl")}], "output": output, "samples_per_shard": PER_SHARD}
        values |= {"fetch": {"allow_loopback": True, "timeout_s": 5, "attempts": 1}, "engine": {"processes": 2, "concurrency": 4, "lease_s": 2}}
        return IngestConfig.model_validate(values | settings)

    return make


def newest_outcomes(output: str) -> dict[str, str]:
    """By URL, from the tables alone."""
    found: dict[str, str] = {}
    for name in published.names(output):
        found |= {row["url"]: row["outcome"] for row in published.rows(output, name).to_pylist()}
    return found


def test_what_was_down_is_fetched_in_a_second_round_and_every_row_is_counted_once(make_config: Callable[..., IngestConfig], tmp_path: Path, web: Any) -> None:
    config, web.down = make_config(str(tmp_path / "dataset")), True
    first = ingest.run(config, tmp_path / "run")
    assert first["outcomes"] == {"success": GOOD, "http_5xx": MOODY, "http_404": GONE}
    web.asked.clear()

    web.down = False
    shutil.rmtree(tmp_path / "run")  # another machine: captions come from the lists again
    result = retry.run(config, tmp_path / "run")
    assert (result["retried"], result["added"], result["samples"]) == (MOODY, MOODY, GOOD + MOODY)
    assert result["outcomes"] == {"success": GOOD + MOODY, "http_404": GONE}
    assert web.asked == Counter({f"moody/{n}": 1 for n in range(MOODY)}), "nothing else is asked for again"
    assert Counter(newest_outcomes(config.output).values()) == result["outcomes"]
    dataset = read_manifest(config.output)
    assert [shard.name for shard in dataset.shards][-3:] == ["00006", "00007", "00008"], "6 shards of the lists, one of them without a success, then 3"
    assert dataset.config["rounds"][0] | {"fetch": None} == {
        "shards": [6, 9],
        "retried": {"http_5xx": MOODY},
        "outcomes": {"success": MOODY},
        "added": MOODY,
        "fetch": None,
    }
    assert not verify.verify(config.output)
    opened = Dataset.open(config.output)
    samples = [opened.read(number) for number in range(opened.num_samples)]
    assert {sample.captions for sample in samples if sample.captions[0].startswith("moody")} == {(f"moody/{n}", "a second caption") for n in range(MOODY)}
    assert len({sample.metadata["uid"] for sample in samples}) == len({sample.key for sample in samples}) == GOOD + MOODY

    web.asked.clear()
    assert ingest.run(config, tmp_path / "run")["fingerprint"] == result["fingerprint"], "the plain command sees it finished"
    assert retry.run(config, tmp_path / "run")["retried"] == 0
    assert read_manifest(config.output).number == dataset.number
    assert not web.asked


@pytest.mark.slow
def test_a_round_that_fails_again_is_followed_by_another_over_the_same_rows(make_config: Callable[..., IngestConfig], tmp_path: Path, web: Any) -> None:
    config, web.down = make_config(str(tmp_path / "dataset"), success_floor=0.6), True
    with pytest.raises(BelowFloor):
        ingest.run(config, tmp_path / "run")
    with pytest.raises(BelowFloor):
        retry.run(config, tmp_path / "run")
    assert read_manifest(config.output).outcomes == {"success": GOOD, "http_5xx": MOODY, "http_404": GONE}
    web.down = False
    result = retry.run(config, tmp_path / "run")
    assert result["outcomes"] == {"success": GOOD + MOODY, "http_404": GONE}
    assert [one["shards"] for one in read_manifest(config.output).config["rounds"]] == [[6, 9], [9, 12]]
    assert Counter(newest_outcomes(config.output).values()) == result["outcomes"]


@pytest.mark.slow
def test_killed_in_mid_round_it_goes_on_and_gives_the_shards_of_an_unkilled_one(make_config: Callable[..., IngestConfig], tmp_path: Path, web: Any) -> None:
    found = {}
    for name in ("whole", "killed"):
        config, web.down = make_config(str(tmp_path / name)), True
        ingest.run(config, tmp_path / f"{name}_run")
        web.down = False
        web.asked.clear()
        if name == "killed":
            web.delay_s = 0.3
            with running(config, tmp_path / "killed_run", "ingest.retry") as command:
                while web.asked.total() < 10:
                    assert command.poll() is None, command.communicate()[1]
                for process in processes(tmp_path / "killed_run"):
                    process.kill()
            web.delay_s = 0.0
            asked = web.asked.total()
            assert asked < MOODY, "the kill came too late"
        found[name] = (retry.run(config, tmp_path / f"{name}_run")["outcomes"], read_manifest(config.output).shards)
        assert web.asked.total() <= MOODY + config.engine.processes * config.engine.concurrency
    assert found["killed"] == found["whole"]
    assert not list((tmp_path / "killed_run").glob("ingest/*/rounds"))


def test_a_dataset_that_is_not_finished_has_nothing_that_failed(make_config: Callable[..., IngestConfig], tmp_path: Path, web: Any) -> None:
    with pytest.raises(DataError, match=r"not finished.*without --retry-failed first"):
        retry.run(make_config(str(tmp_path / "dataset")), tmp_path / "run")
    assert not web.asked


@pytest.mark.slow
def test_on_s3_a_round_adds_the_same_shards(make_config: Callable[..., IngestConfig], tmp_path: Path, web: Any, s3_bucket: str) -> None:
    config, web.down = make_config(f"{s3_bucket}/set", samples_per_shard=40, engine={"processes": 1, "lease_s": 2}), True
    ingest.run(config, tmp_path / "run")
    web.down = False
    assert retry.run(config, tmp_path / "run")["outcomes"] == {"success": GOOD + MOODY, "http_404": GONE}
    assert not verify.verify(config.output)
    assert set(storage.list_folders(config.output)) == {"index", "manifests", "outcomes"}


def test_refusals_and_what_the_bytes_are_do_not_pass() -> None:
    assert not MAY_PASS & {Outcome.SUCCESS, Outcome.HTTP_403, Outcome.HTTP_404, Outcome.OPTED_OUT, Outcome.BLOCKED_ADDRESS, Outcome.NOT_AN_IMAGE}
