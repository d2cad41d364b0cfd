"""A study of very small runs from the command line: finished runs are kept, killed ones go on, and the page says what came out."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import tiny_run
import yaml
from PIL import Image

from pipeline.app.config import RunConfig
from pipeline.app.studies import STUDIES
from pipeline.app.studies.grid import runs_of
from pipeline.core.config import load

BASE = Path(__file__).parents[3] / "pipeline" / "configs"


def command(name: str, config: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "pipeline.app", "study", name, str(config), *arguments]


def carried_out(name: str, config: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(name, config, *arguments), env=tiny_run.environment(), capture_output=True, text=True, check=False, timeout=800)


def write_benchmarks(folder: Path) -> dict[str, object]:
    """An eval section over eight pictures of coloured noise, six to test and two to validate on."""
    images, contrast = [], {}
    for number in range(8):
        Image.effect_noise((40, 40), 20 + number).convert("RGB").save(folder / f"{number}.png")
        captions = [{"raw": f"{tiny_run.WORDS[number]} dog on the grass"}, {"raw": f"a {tiny_run.WORDS[number]} cat"}]
        images.append({"filename": f"{number}.png", "split": "val" if number > 5 else "test", "imgid": number, "sentences": captions})
        contrast[str(number)] = {"filename": f"{number}.png", "caption": captions[0]["raw"], "negative_caption": captions[1]["raw"]}
    (folder / "karpathy.json").write_text(json.dumps({"images": images}))
    where = {"annotations": str(folder / "karpathy.json"), "pictures": str(folder)}
    for kind in ("swap_colour", "swap_left_right"):
        (folder / f"{kind}.json").write_text(json.dumps(contrast))
    files = [str(folder / f"{kind}.json") for kind in ("swap_colour", "swap_left_right")]
    retrieval = {**where, "k_test": 3, "itm_loss_pairs": 8, "itm_ranking_pictures": 4, "gallery": 0}
    return {"tasks": {"retrieval": retrieval, "contrast": {"files": files, "pictures": str(folder)}, "masked_words": where}}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A base configuration of a 2-layer model, with the losses of Table 1's first row."""
    tiny_run.write_dataset(tmp_path / "dataset")
    path = tiny_run.configuration(
        tmp_path / "run", tmp_path / "dataset", max_steps=4, losses={"itm": {"hard_from_step": None}, "mlm": {"soft_targets": False}}, evaluate_every_steps=2
    )
    values = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**values, "eval": write_benchmarks(tmp_path)}))
    return path


def modified(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("step-*/manifest.json")}


@pytest.mark.slow
@pytest.mark.timeout(1700)
def test_table1_runs_its_rows_and_says_what_the_differences_come_to(base: Path, tmp_path: Path) -> None:
    arguments = ("--seeds", "2", "--only", "mlm-itm,itc")
    done = carried_out("table1", base, *arguments)
    assert done.returncode == 0, done.stderr
    docs = tmp_path / "run" / "studies" / "table1"
    record = json.loads((docs / "benchmarks" / "table1.json").read_text())
    assert {"name", "command", "commit", "machine", "rows"} <= set(record)
    assert record["runs"] == 4
    figures = {figure["case"]: figure for figure in record["rows"]}
    before, after = (figures[f"{row}/retrieval/itm/text_recall@1"] for row in ("mlm-itm", "itc"))
    change = figures["itc minus mlm-itm/retrieval/itm/text_recall@1"]
    assert change["ours"] == pytest.approx(after["ours"] - before["ours"], abs=2e-3)
    assert change["low"] <= change["ours"] <= change["high"]
    assert len(change["seeds"]) == 2
    scored = json.loads((tmp_path / "run" / "studies" / "table1" / "itc-seed1" / "eval" / "results.json").read_text())["tasks"]
    assert scored["masked_words"]["metrics"]["accuracy"] == pytest.approx(figures["itc/masked_words/accuracy"]["seeds"][1], abs=1e-3)
    page = (docs / "table1.md").read_text()
    assert "| | MLM + ITM | + ITC |" in page
    assert "(no ITC)" in page
    assert "- **+ ITC**: " in page
    finished = modified(tmp_path / "run" / "studies")
    again = carried_out("table1", base, *arguments)
    assert again.returncode == 0, again.stderr
    assert modified(tmp_path / "run" / "studies") == finished  # nothing was trained twice
    assert json.loads((docs / "benchmarks" / "table1.json").read_text())["rows"] == record["rows"]


@pytest.mark.timeout(900)
def test_itm_start_draws_its_curves_and_says_when_itm_started(base: Path, tmp_path: Path) -> None:
    few = ("training.max_steps=4", "training.evaluate_every_steps=2", "training.save_every_steps=2")
    done = carried_out("itm-start", base, *few, "--only", "weight-10")  # the demo's own setting, which the others are compared with, comes by itself
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "run" / "studies" / "itm-start"
    with Image.open(folder / "itm_start.png") as picture:
        assert picture.width > 500
    figures = {figure["case"]: figure for figure in json.loads((folder / "benchmarks" / "itm_start.json").read_text())["rows"]}
    gain = figures["weight-10/re-ranking adds to text_recall@1"]["ours"]
    assert gain == pytest.approx(figures["weight-10/reranked/text_recall@1"]["ours"] - figures["weight-10/itc/text_recall@1"]["ours"], abs=2e-3)
    assert figures["demo/started at step"]["seeds"] in ([None], [2], [4])
    page = (folder / "itm_start.md").read_text()
    assert "## Weight of ITM" in page
    assert "## Fusion layers" not in page  # one variant is no comparison


@pytest.mark.slow
@pytest.mark.timeout(1700)
def test_killed_with_its_runs_under_way_a_study_leaves_nobody_behind_and_goes_on(base: Path, tmp_path: Path) -> None:
    arguments = ("training.max_steps=60", "training.save_every_steps=5", "--seeds", "1", "--only", "mlm-itm")
    process = subprocess.Popen(command("table1", base, *arguments), env=tiny_run.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    latest = tmp_path / "run" / "studies" / "table1" / "mlm-itm-seed0" / "train" / "checkpoints" / "latest"
    deadline = time.monotonic() + 600
    while not latest.exists():
        assert process.poll() is None, "the study ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    gone, alive = psutil.wait_procs(children, timeout=60)
    assert gone
    assert not alive
    reached = int(latest.read_text().removeprefix("step-"))
    assert reached < 60
    done = carried_out("table1", base, *arguments)
    assert done.returncode == 0, done.stderr
    log = (latest.parents[2] / "log.txt").read_text()
    assert f"step {reached} of 60" in log or f"step {reached + 5} of 60" in log
    assert "step 0 of 60" in log


@pytest.mark.slow
@pytest.mark.timeout(1700)
def test_asked_to_stop_a_study_lets_its_runs_save_and_says_how_to_go_on(base: Path, tmp_path: Path) -> None:
    arguments = ("training.max_steps=100000", "training.epochs=100000", "--seeds", "1", "--only", "mlm-itm")
    process = subprocess.Popen(command("table1", base, *arguments), env=tiny_run.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "run" / "studies" / "table1" / "mlm-itm-seed0" / "train" / "metrics.jsonl"
    deadline = time.monotonic() + 600
    while not (metrics.exists() and metrics.stat().st_size):
        assert process.poll() is None, "the study ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 4, errors
    assert "run the same command again to continue" in errors
    assert (metrics.parent / "checkpoints" / "latest").exists()


def test_a_run_that_fails_is_named_with_its_reason(base: Path) -> None:
    done = carried_out("table1", base, "training.dataset=/nowhere", "--seeds", "1", "--only", "itc")
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("albef: ")]
    assert "itc-seed0: the run ended with exit code 2" in line
    assert "/nowhere" in line


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("table2", (), "table1, itm-start"),
        ("table1", ("--only", "itc,itx"), "no variant itx"),
        ("table1", ("--only", "itc", "--docs", "docs"), "the page of a part would take the place"),
        ("table1", ("eval=null",), "needs a training and an eval section"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(base: Path, name: str, arguments: tuple[str, ...], words: str) -> None:
    done = carried_out(name, base, *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("name", "config"), [("table1", "table1_scenes.yaml"), ("itm-start", "demo.yaml")])
def test_every_variant_of_a_shipped_study_is_a_valid_configuration_of_its_own(name: str, config: str) -> None:
    study = STUDIES[name]
    runs = runs_of(name, BASE / config, study.settings, study.variants, range(study.seeds))
    assert len({run.folder for run in runs}) == len(runs) == len(study.variants) * study.seeds
    settings = {json.dumps(run.config.training.model_dump(mode="json", exclude={"seed"}), sort_keys=True) for run in runs if run.config.training}
    assert len(settings) == len(study.variants)
    assert all(run.config.scenes is run.config.ingest is None for run in runs)


def test_the_rows_of_table1_add_one_part_of_the_method_each() -> None:
    study = STUDIES["table1"]
    runs = runs_of("table1", BASE / "table1_scenes.yaml", study.settings, study.variants, [0])
    losses = [run.config.training.losses for run in runs if run.config.training]
    weight = {"weight": 3.0}
    assert losses == [
        {"itm": {**weight, "hard_from_step": None}, "mlm": {"soft_targets": False}},
        {"itc": {"soft_targets": False}, "itm": {**weight, "hard_from_step": None}, "mlm": {"soft_targets": False}},
        {"itc": {"soft_targets": False}, "itm": {**weight, "hard_from_step": 300}, "mlm": {"soft_targets": False}},
        {"itc": {"soft_targets": True}, "itm": {**weight, "hard_from_step": 300}, "mlm": {"soft_targets": False}},
        {"itc": {"soft_targets": True}, "itm": {**weight, "hard_from_step": 300}, "mlm": {"soft_targets": True}},
    ]


def test_the_rows_on_scenes_are_those_of_the_papers_table() -> None:
    def parts(config: RunConfig) -> dict[str, object]:
        assert config.training is not None
        losses = {name: options or {} for name, options in config.training.losses.items()}
        hard = losses["itm"].get("hard_from_step", 0) is not None
        return {"losses": set(losses), "hard negatives": hard, "MoD": {name: losses[name].get("soft_targets", True) for name in losses.keys() & {"itc", "mlm"}}}

    study = STUDIES["table1"]
    runs = runs_of("table1", BASE / "table1_scenes.yaml", study.settings, study.variants, [0])
    papers = sorted((BASE / "table1").glob("*.yaml"))
    assert [parts(run.config) for run in runs] == [parts(load(RunConfig, path)) for path in papers]
