"""The command line as a stranger meets it: help at once, and one line with exit code 2 for every mistake."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_run
import yaml

from shards import foreign, writer


def albef(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline.app", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env={**tiny_run.environment(), **variables})


def assert_one_line(done: subprocess.CompletedProcess[str], *words: str, exit_code: int = 2) -> None:
    """The exit code and, on standard error, one line of ours that holds all `words`."""
    assert done.returncode == exit_code, done.stderr
    ours = [line for line in done.stderr.splitlines() if line.startswith("albef: ")]
    assert len(ours) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in ours[0]


def ingest_config(folder: Path, **changes: object) -> Path:
    section = {"sources": [{"type": "parquet", "path": str(folder / "absent.parquet")}], "output": str(folder / "dataset"), **changes}
    path = folder / "ingest.yaml"
    path.write_text(yaml.safe_dump({"run": {"folder": str(folder / "run")}, "ingest": section}))
    return path


@pytest.mark.parametrize("arguments", [["--help"], ["ingest", "--help"], ["shards", "--help"], ["checkpoint", "--help"]])
def test_help_answers_at_once_and_without_torch(arguments: list[str]) -> None:
    loaded = "import sys; sys.argv = ['albef', *{}]\nfrom pipeline.app.cli import main\ntry:\n main()\nfinally:\n assert 'torch' not in sys.modules"
    started = os.times()
    done = subprocess.run([sys.executable, "-c", loaded.format(arguments)], capture_output=True, text=True, check=False, timeout=60)
    cpu_s = sum(os.times()[2:4]) - sum(started[2:4])
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout
    assert cpu_s < 1.5  # 0.2 to 0.4 measured; torch alone would be 2


def test_an_unknown_key_names_the_likely_one(tmp_path: Path) -> None:
    assert_one_line(albef("ingest", str(ingest_config(tmp_path, outptu="x"))), "ingest.outptu", "did you mean output?")


def test_a_missing_list_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    assert_one_line(albef("ingest", str(ingest_config(tmp_path))), "absent.parquet", "not found")
    assert not list(tmp_path.glob("dataset/*.tar"))


def test_somebody_elses_tars_are_neither_overwritten_nor_removed(tmp_path: Path) -> None:
    pairs = tmp_path / "list.jsonl"
    pairs.write_text('{"url": "http://127.0.0.1:9/a.jpg", "caption": "a cat"}\n')
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "00000.tar").write_bytes(b"precious")
    done = albef("ingest", str(ingest_config(tmp_path, sources=[{"type": "jsonl", "path": str(pairs)}])))
    assert_one_line(done, "holds tars that ingest did not make")
    assert (tmp_path / "dataset" / "00000.tar").read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("override", "words"),
    [("run.folder=s3://bucket/x", "run.folder"), ("ingest.output=s4://x/y", "s4://x/y"), ("ingest.sources=[]", "ingest.sources")],
)
def test_places_that_cannot_be_are_named(tmp_path: Path, override: str, words: str) -> None:
    pairs = tmp_path / "list.jsonl"
    pairs.write_text('{"url": "http://127.0.0.1:9/a.jpg", "caption": "a cat"}\n')
    config = ingest_config(tmp_path, sources=[{"type": "jsonl", "path": str(pairs)}])
    assert_one_line(albef("ingest", str(config), override), words)


def test_an_option_of_the_wrong_type_is_named_before_the_model_is_built(tmp_path: Path) -> None:
    tiny_run.write_dataset(tmp_path / "data")
    config = tiny_run.configuration(tmp_path / "run", tmp_path / "data", losses={"itm": {"weight": "abc"}})
    assert_one_line(albef("train", str(config)), "training.losses.itm.weight", "abc")


def test_an_unreachable_bucket_is_one_line(tmp_path: Path) -> None:
    world = tmp_path / "list.jsonl"
    world.write_text('{"url": "http://127.0.0.1:9/a.jpg", "caption": "a cat"}\n')
    config = ingest_config(tmp_path, sources=[{"type": "jsonl", "path": str(world)}], output="s3://no-such-bucket/data")
    keys = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"}
    assert_one_line(albef("ingest", str(config), **keys), "s3://no-such-bucket/data")


def test_a_corrupt_tar_is_named_before_training_starts(tmp_path: Path) -> None:
    data = tmp_path / "data"
    tiny_run.write_dataset(data)
    shard = data / "00001.tar"
    shard.write_bytes(shard.read_bytes()[:5_000])
    assert_one_line(albef("train", str(tiny_run.configuration(tmp_path / "run", data))), "00001", "training.quarantine_budget", exit_code=3)


def test_verify_finds_one_flipped_byte(tmp_path: Path) -> None:
    tiny_run.write_dataset(tmp_path)
    shard = tmp_path / "00002.tar"
    damaged = bytearray(shard.read_bytes())
    damaged[3_000] ^= 1
    shard.write_bytes(damaged)
    done = albef("shards", "verify", str(tmp_path))
    assert_one_line(done, str(tmp_path))
    assert "00002" in done.stdout


def test_a_file_that_is_no_checkpoint_is_refused_by_the_evaluation(tmp_path: Path) -> None:
    (tmp_path / "karpathy.json").write_text('{"images": [], "dataset": "x"}')
    task = {"annotations": str(tmp_path / "karpathy.json"), "pictures": str(tmp_path)}
    path = tmp_path / "eval.yaml"
    path.write_text(yaml.safe_dump({"run": {"folder": str(tmp_path / "run")}, "eval": {"checkpoint": str(tmp_path), "tasks": {"retrieval": task}}}))
    assert_one_line(albef("eval", str(path)))


def test_the_reference_lists_every_section() -> None:
    printed = albef("config", "reference").stdout
    for key in ("run.folder", "scenes.seed", "ingest.output", "training.global_batch_size", "training.model.image_size", "eval.tasks"):
        assert f"{key} = " in printed


def test_two_commands_in_one_run_directory_are_refused(tmp_path: Path) -> None:
    tiny_run.write_dataset(tmp_path / "data")
    config = tiny_run.configuration(tmp_path / "run", tmp_path / "data", max_steps=100_000, epochs=100_000)
    first = subprocess.Popen(tiny_run.command(config), env=tiny_run.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "run" / "lock").exists() or not (tmp_path / "run" / "lock").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert_one_line(albef("train", str(config)), "in use by process", str(first.pid))
    finally:
        first.kill()
        first.wait()


def test_ingest_takes_a_configuration_or_a_command_of_its_own(tmp_path: Path) -> None:
    assert_one_line(albef("ingest", "--retry-failed", str(tmp_path / "absent.yaml")), "absent.yaml: no such configuration file")
    pairs = tmp_path / "list.jsonl"
    pairs.write_text('{"url": "http://127.0.0.1:9/a.jpg", "caption": "a cat"}\n')
    config = ingest_config(tmp_path, sources=[{"type": "jsonl", "path": str(pairs)}])
    assert_one_line(albef("ingest", str(config), "--retry-failed"), "dataset is not finished")


def test_purge_names_what_it_took_and_says_when_there_is_nothing(tmp_path: Path) -> None:
    samples = [writer.SampleToWrite(f"{n}", b"picture", "jpg", ("x",), {"url": f"http://a.example/{n}.jpg"}) for n in range(2)]
    writer.write_shard(str(tmp_path / "set" / "part.tar"), samples)
    foreign.index_folder(str(tmp_path / "set"))
    (tmp_path / "list.txt").write_text("http://a.example/1.jpg\n")
    done = albef("ingest", "purge", str(tmp_path / "set"), str(tmp_path / "list.txt"))
    assert done.returncode == 0, done.stderr
    assert "part 1 http://a.example/1.jpg by url http://a.example/1.jpg\n1 pictures taken out of 1 shards\n" in done.stdout
    assert "nothing to purge\n" in albef("ingest", "purge", str(tmp_path / "set"), str(tmp_path / "list.txt")).stdout
    (tmp_path / "list.txt").write_text("what\n")
    assert_one_line(albef("ingest", "purge", str(tmp_path / "set"), str(tmp_path / "list.txt")), "list.txt line 1", "'what'")
    assert_one_line(albef("ingest", "phash", str(tmp_path / "out.parquet"), str(tmp_path / "absent")), "absent: no picture that can be read")


def test_a_setting_of_reading_that_does_not_fit_is_named_by_its_full_key(tmp_path: Path) -> None:
    tiny_run.write_dataset(tmp_path / "data")
    config = tiny_run.configuration(tmp_path, tmp_path / "data", lanes=5)
    assert_one_line(albef("train", str(config)), "training.lanes 5 do not divide the global_batch_size", "take one of 1, 2, 4")
