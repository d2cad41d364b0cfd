"""`albef inspect pseudo-targets` on a small trained run: a page that stands alone, and one line for every mistake."""

import subprocess
import sys
from pathlib import Path

import published_files
import pytest
import tiny_run
import torch

from shards.dataset import Dataset
from shards.manifest import publish
from shards.writer import SampleToWrite, write_shard
from training import checkpoint
from training.tokenizer import SPECIAL, Tokenizer
from training.weights.conversion import import_file


def inspect(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline.app", "inspect", "pseudo-targets", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=tiny_run.environment())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with a checkpoint; its dataset is beside it."""
    folder = tmp_path_factory.mktemp("pseudo-targets")
    tiny_run.write_dataset(folder / "dataset")
    done = tiny_run.train(tiny_run.configuration(folder / "run", folder / "dataset", max_steps=2))
    assert done.returncode == 0, done.stderr
    return folder / "run"


def test_the_page_shows_the_chosen_samples_with_pictures_and_five_guesses_each(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    done = inspect(str(run), "--dataset", str(run.parent / "dataset"), "--samples", "000004, 000007 ", "--pool", "20", "--out", str(out))
    assert done.returncode == 0, done.stderr
    page = out.read_text()
    assert page.count("data:image/jpeg;base64,") == 2
    assert page.index("000004") < page.index("000007")
    assert "among 20 captions" in page
    assert page.count("<li") % 5 == 0
    assert 'class="right"' in page
    assert "http" not in page.replace("http-equiv", "")


def test_a_checkpoint_folder_gives_the_page_of_its_run(run: Path, tmp_path: Path) -> None:
    pages = []
    for place in (run, run / "train" / "checkpoints", run / "train" / "checkpoints" / "step-0000002"):
        out = tmp_path / "page.html"
        done = inspect(str(place), "--dataset", str(run.parent / "dataset"), "--count", "2", "--out", str(out))
        assert done.returncode == 0, done.stderr
        pages.append(out.read_text())
    assert pages[0] == pages[1] == pages[2]


def test_nothing_in_a_caption_becomes_markup(run: Path, tmp_path: Path) -> None:
    picture = Dataset.open(str(run.parent / "dataset")).read(0).image
    shard = write_shard(str(tmp_path / "data" / "00000.tar"), [SampleToWrite("a<b>", picture, "jpg", ("<script>red & cat",))], source="test")
    publish(str(tmp_path / "data"), [shard], outcomes={"success": 1}, config={})
    done = inspect(str(run), "--dataset", str(tmp_path / "data"), "--count", "1", "--out", str(tmp_path / "page.html"))
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "page.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "a&lt;b&gt;" in page


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--samples", "000004,nowhere"], ["nowhere", "no sample"]),
        (["--samples", "000004", "--words", "zebra"], ["--words zebra"]),
        (["--dataset", "/nowhere"], ["/nowhere"]),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(run: Path, tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    done = inspect(str(run), "--dataset", str(run.parent / "dataset"), "--out", str(tmp_path / "page.html"), *arguments)
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("albef: ")]
    assert all(word in line for word in words), line
    assert not (tmp_path / "page.html").exists()


def test_a_folder_without_a_checkpoint_is_named(run: Path, tmp_path: Path) -> None:
    done = inspect(str(tmp_path), "--dataset", str(run.parent / "dataset"), "--out", str(tmp_path / "page.html"))
    assert done.returncode == 2
    assert f"albef: {tmp_path}: no checkpoint here" in done.stderr


@pytest.mark.parametrize(("kind", "missing"), [("nlvr", "temperature, image_projection, text_projection, mlm_head"), ("retrieval", "mlm_head")])
def test_a_teacher_whose_heads_were_never_trained_is_not_asked(run: Path, tmp_path: Path, kind: str, missing: str) -> None:
    torch.save({"model": published_files.tensors(kind)}, tmp_path / "published.pth")
    import_file(str(tmp_path / "published.pth"), str(tmp_path / "checkpoint"), Tokenizer([*SPECIAL, *(f"word{number}" for number in range(35))]))
    done = inspect(str(tmp_path / "checkpoint"), "--dataset", str(run.parent / "dataset"), "--out", str(tmp_path / "page.html"))
    assert done.returncode == 2
    assert f"has no trained {missing}, so its teacher would guess at random; train from it first" in done.stderr
    assert not (tmp_path / "page.html").exists()


def test_a_checkpoint_imported_without_a_teacher_is_said_to_have_none(run: Path, tmp_path: Path) -> None:
    trained = checkpoint.read(str(run))
    record = {**trained.manifest, "state": {"step": 0}, "published": {"file": "vqa.pth", "variant": "vqa", "fresh": []}}
    checkpoint.write_first(str(tmp_path / "imported"), {"student": trained.tensors("student")}, trained.tokenizer(), record)
    done = inspect(str(tmp_path / "imported"), "--dataset", str(run.parent / "dataset"), "--out", str(tmp_path / "page.html"))
    assert done.returncode == 2
    assert "imported from vqa.pth, which has no teacher" in done.stderr


def test_the_page_is_made_from_a_dataset_on_s3(run: Path, tmp_path: Path, s3_bucket: str) -> None:
    from pipeline.core import storage

    for path in sorted((run.parent / "dataset").rglob("*")):
        if path.is_file():
            storage.write_bytes(f"{s3_bucket}/data/{path.relative_to(run.parent / 'dataset')}", path.read_bytes())
    pages = []
    for dataset in (f"{s3_bucket}/data", str(run.parent / "dataset")):
        done = inspect(str(run), "--dataset", dataset, "--samples", "000004", "--out", str(tmp_path / "page.html"))
        assert done.returncode == 0, done.stderr
        pages.append((tmp_path / "page.html").read_text().replace(dataset, "DATASET"))
    assert pages[0] == pages[1]
    assert pages[0].count("data:image/jpeg") == 1


def test_a_drawn_sample_without_captions_is_replaced_and_the_page_says_so(run: Path, tmp_path: Path) -> None:
    picture = Dataset.open(str(run.parent / "dataset")).read(0).image
    rows = [SampleToWrite("mute", picture, "jpg", ("...",)), SampleToWrite("red", picture, "jpg", ("a red cat",))]
    publish(str(tmp_path / "data"), [write_shard(str(tmp_path / "data" / "00000.tar"), rows, source="test")], outcomes={"success": 2}, config={})
    done = inspect(str(run), "--dataset", str(tmp_path / "data"), "--count", "2", "--out", str(tmp_path / "page.html"))
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "page.html").read_text()
    assert page.count("data:image/jpeg") == 1
    assert "mute: has no caption" in page
    chosen = inspect(str(run), "--dataset", str(tmp_path / "data"), "--samples", "mute", "--out", str(tmp_path / "page.html"))
    assert chosen.returncode == 2
    assert "albef: mute: has no caption" in chosen.stderr
