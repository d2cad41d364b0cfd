"""`albef shards`: what a person sees."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from pipeline.core.errors import DataError
from shards import layout
from shards.annotations.karpathy import KarpathyImage, read_karpathy
from shards.cli import app

from .conftest import MakeDataset


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def test_a_folder_of_foreign_tars_is_indexed_verified_and_described(make_dataset: MakeDataset, tmp_path: Path) -> None:
    folder = Path(make_dataset([6, 3]).folder)
    for made in (folder / "MANIFEST", folder / "manifests" / "00001.json", *(folder / "index").iterdir()):
        made.unlink()
    assert "manifest 1: 2 shards, 9 samples, 18 captions" in run("index", str(folder))
    assert "as published" in run("verify", str(folder))
    described = run("stats", str(folder), "--contact-sheet", str(tmp_path / "sheet.png"))
    for expected in (
        "9 samples, 18 captions, 2 shards",
        "width: median 32",
        "height: median 24",
        "formats: jpeg 9",
        "0 of them damaged",
        "caption words: median 4",
    ):
        assert expected in described
    assert Image.open(tmp_path / "sheet.png").size == (1280, 128)


def test_verify_lists_every_difference_and_ends_with_one_line(
    make_dataset: MakeDataset, flip_byte: Callable[[str, int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_dataset([6, 3, 2]).folder
    flip_byte(layout.tar_path(folder, "00000"), 600)
    Path(layout.tar_path(folder, "00002")).unlink()
    with pytest.raises(DataError, match=r"^[^\n]*3 differences from manifest 1[^\n]*$"):
        run("verify", folder)


def test_stats_count_damaged_samples(make_dataset: MakeDataset, flip_byte: Callable[[str, int], None], tmp_path: Path) -> None:
    folder = make_dataset([6]).folder
    flip_byte(layout.tar_path(folder, "00000"), 600)
    assert "looked at 6 samples, 1 of them damaged" in run("stats", folder, "--contact-sheet", str(tmp_path / "sheet.png"))
    assert (255, 0, 0) in {color for _, color in Image.open(tmp_path / "sheet.png").getcolors(100_000)}


def test_the_shards_package_runs_without_torch() -> None:
    code = "import sys, shards.cli, shards.dataset, shards.writer, shards.verify, shards.stats, shards.decode, shards.foreign; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_karpathy_files_of_coco_and_flickr_are_read(tmp_path: Path) -> None:
    sentences = [{"raw": "A dog."}, {"raw": "Dog!"}]
    images = [
        {"filepath": "val2014", "filename": "a.jpg", "cocoid": 42, "imgid": 0, "split": "test", "sentences": sentences},
        {"filename": "b.jpg", "imgid": 1, "split": "train", "sentences": sentences[:1]},
    ]
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"images": images}))
    assert read_karpathy(str(path), "test") == [KarpathyImage("val2014/a.jpg", ("A dog.", "Dog!"), 42, coco_id=42)]
    assert read_karpathy(str(path), "train") == [KarpathyImage("b.jpg", ("A dog.",), 1)]
    with pytest.raises(DataError, match="no image of split 'val'; it has test, train"):
        read_karpathy(str(path), "val")
    path.write_text("[1, 2]")
    with pytest.raises(DataError, match="not a Karpathy caption file"):
        read_karpathy(str(path), "test")
