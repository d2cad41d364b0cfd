"""`albef shards`: what a person sees."""

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import s3fs
import webdataset
from PIL import Image
from typer.testing import CliRunner
from waiting import wait_until
from wire_proxy import WireProxy

from pipeline.core import storage
from pipeline.core.errors import DataError, Stopped, UserError
from shards import layout
from shards.annotations.karpathy import KarpathyImage, read_karpathy
from shards.cli import app
from shards.dataset import Dataset
from shards.manifest import read_manifest

from .conftest import MakeDataset
from .foreign_tars import jpeg, read_by_webdataset, write_laion


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
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (1344, 434)


def test_verify_lists_every_difference_and_ends_with_one_line(
    make_dataset: MakeDataset, flip_byte: Callable[[str, int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_dataset([6, 3, 2]).folder
    flip_byte(layout.tar_path(folder, "00000"), 600)
    Path(layout.tar_path(folder, "00002")).unlink()
    with pytest.raises(DataError, match=r"^[^\n]*3 differences from manifest 1[^\n]*$"):
        run("verify", folder)


@pytest.mark.parametrize("place", ["disk", "s3"])
def test_tars_of_img2dataset_are_indexed_verified_described_and_resharded(place: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """What a person does with a copy of LAION, parquets and all, by the commands alone."""
    folder = str(write_laion(tmp_path / "laion", [7, 5]))
    out = str(tmp_path / "out")
    if place == "s3":
        bucket = request.getfixturevalue("s3_bucket")
        for path in Path(folder).iterdir():
            storage.write_bytes(f"{bucket}/laion/{path.name}", path.read_bytes())
        folder, out = f"{bucket}/laion", f"{bucket}/out"
    workers = ("--workers", "1")
    assert "manifest 1: 2 shards, 12 samples, 12 captions" in run("index", folder, *workers)
    assert "all 2 shards and 12 samples are as published" in run("verify", folder, *workers)
    assert "all 2 shards and 12 samples have their sizes and indexes" in run("verify", folder, "--quick", *workers)
    described = run("stats", folder, "--contact-sheet", f"{out}.png", "--pictures", "7", *workers)
    assert "12 samples, 12 captions, 2 shards" in described
    with Image.open(io.BytesIO(storage.read_bytes(f"{out}.png"))) as sheet:
        assert sheet.size == (1344, 434)
    resharded = run("reshard", folder, out, "--where", "picture.width >= 60", "--shuffle", "1", "--bytes-per-shard", "30kB", *workers)
    left_out = int(re.findall(r"left out: (\d+) of 12", resharded)[0])
    assert f"{left_out:>8}  not (picture.width >= 60)" in resharded
    dataset = Dataset.open(out)
    assert dataset.num_samples == 12 - left_out
    assert "as published" in run("verify", out, *workers)


def test_a_read_only_dataset_has_its_index_elsewhere(tmp_path: Path) -> None:
    folder, root = write_laion(tmp_path / "laion", [7, 5]), str(tmp_path / "root")
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    for command in (["index"], ["verify"], ["stats"], ["reshard", "--samples-per-shard", "4"]):
        rest = [str(tmp_path / "out")] if command[0] == "reshard" else []
        run(command[0], str(folder), *rest, *command[1:], "--index-root", root, "--workers", "1")
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert read_by_webdataset(tmp_path / "out") == read_by_webdataset(folder)


def test_tars_that_did_not_change_are_not_read_again(tmp_path: Path) -> None:
    folder = write_laion(tmp_path / "laion", [7, 5])
    run("index", str(folder), "--workers", "1")
    indexes = {path: path.stat().st_mtime_ns for path in (folder / "index").iterdir()}
    write_laion(tmp_path / "more", [3], first=90_000)
    (tmp_path / "more" / "00000.tar").rename(folder / "00002.tar")
    assert "manifest 2: 3 shards, 15 samples" in run("index", str(folder), "--workers", "2")
    assert {path: path.stat().st_mtime_ns for path in (folder / "index").iterdir() if path in indexes} == indexes
    (folder / "index" / "00001.albef").unlink()
    assert "manifest 2: 3 shards" in run("index", str(folder), "--workers", "1"), "the same manifest: nothing changed"
    assert "as published" in run("verify", str(folder), "--workers", "1")
    run("index", str(folder), "--afresh", "--workers", "1")
    assert all(path.stat().st_mtime_ns > written for path, written in indexes.items())


def test_damaged_tars_are_all_named_and_the_others_are_not_read_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_laion(tmp_path / "laion", [7, 5, 4, 3])
    for name in ("00001", "00003"):
        path = folder / f"{name}.tar"
        path.write_bytes(path.read_bytes()[:6000])
    result = CliRunner().invoke(app, ["index", str(folder), "--workers", "2"])
    assert [line.split(":")[0] for line in result.output.splitlines()] == [str(folder / "00001.tar"), str(folder / "00003.tar")]
    assert isinstance(result.exception, DataError)
    assert result.exception.exit_code == 2
    assert re.fullmatch(r"\S+00001.tar: [^\n]*, and 1 more; nothing was published: [^\n]*--skip-damaged", str(result.exception))
    assert not (folder / "MANIFEST").exists()
    kept = {path: path.stat().st_mtime_ns for path in (folder / "index").iterdir()}
    said = run("index", str(folder), "--skip-damaged", "--workers", "1")
    assert "manifest 1: 2 shards, 11 samples" in said
    assert said.count("left out: ") == 2
    assert set(read_manifest(str(folder)).config["damaged_tars"]) == {"00001", "00003"}
    assert {path: path.stat().st_mtime_ns for path in (folder / "index").iterdir()} == kept
    for number, name in ((5, "00001"), (3, "00003")):
        write_laion(tmp_path / name, [number], first=10_000 * int(name))
        (tmp_path / name / "00000.tar").replace(folder / f"{name}.tar")
    assert "manifest 2: 4 shards, 19 samples" in run("index", str(folder), "--workers", "1")
    assert "damaged_tars" not in read_manifest(str(folder)).config


def test_upper_case_suffixes_folders_and_dots_in_keys_are_read_by_webdatasets_rule(tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        writer.write({"__key__": "dir.1/one", "JPG": jpeg(1, 40, 30), "txt": "a dog"})
        writer.write({"__key__": "dir.1/two", "jpeg": jpeg(2, 40, 30), "json": {"captions": ["a", "b"]}})
        writer.write({"__key__": "three", "final.jpg": jpeg(3, 40, 30), "txt": "not a picture by the rule"})
    said = run("index", str(tmp_path), "--workers", "1")
    assert "1 shards, 2 samples, 3 captions" in said
    assert "left out: 1 without_image" in said
    dataset = Dataset.open(str(tmp_path))
    assert [dataset.read(row).key for row in range(2)] == ["dir.1/one", "dir.1/two"]


def a_folder(kind: str, tmp_path: Path) -> str:
    path = tmp_path / kind
    if kind == "cut/00000.tar":
        return str(write_laion(path.parent, [2]) / "00000.tar")
    if kind == "file":
        path.write_text("x")
    elif kind != "missing":
        path.mkdir()
    if kind == "nested":
        write_laion(path / "part-1", [2])
    elif kind == "compressed":
        (path / "00000.tar.gz").write_bytes(b"x")
    elif kind == "cut":
        write_laion(path, [2])
        (path / "00000.tar").write_bytes((path / "00000.tar").read_bytes()[:3000])
    elif kind == "not-a-tar":
        (path / "00000.tar").write_bytes(b"<html>404</html>" * 100)
    return str(path)


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ("missing", "no .tar files here"),
        ("empty", "no .tar files here"),
        ("file", "is a file; give the folder"),
        ("nested", "but in its folders part-1"),
        ("compressed", "but 00000.tar.gz; unpack"),
        ("cut", "the tar is cut off"),
        ("not-a-tar", "damaged tar header"),
        ("cut/00000.tar", "is a file; give the folder"),
    ],
)
def test_a_folder_that_cannot_be_indexed_is_one_line(kind: str, found: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"^[^\n]*{found}[^\n]*$"):
        run("index", a_folder(kind, tmp_path), "--workers", "1")


@pytest.mark.parametrize("command", ["verify", "stats", "reshard"])
@pytest.mark.parametrize("kind", ["missing", "empty", "file"])
def test_what_is_no_dataset_is_one_line_for_every_tool(command: str, kind: str, tmp_path: Path) -> None:
    rest = [str(tmp_path / "out")] if command == "reshard" else []
    with pytest.raises(DataError, match=r"^[^\n]*no dataset here \(no MANIFEST\); run [^\n]*$"):
        run(command, a_folder(kind, tmp_path), *rest)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (["--bytes-per-shard", "many"], "--bytes-per-shard 'many': not a size of a shard; write it like 500MB or 1GiB"),
        (["--bytes-per-shard", "0"], "not a size"),
        (["--bytes-per-shard", "0.1"], "not a size"),
        (["--bytes-per-shard", "9" * 400], "not a size"),
        (["--bytes-per-shard", "9" * 18 + "TB"], "not a size"),
        (["--index-root", "a", "--index-root", "b"], "--index-root is there 2 times for 1 datasets"),
        (["--manifest", "7"], "no such manifest; the newest of"),
        (["--where", "width >"], "write it like"),
    ],
)
def test_a_wrong_option_is_one_line(options: list[str], found: str, make_dataset: MakeDataset, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^[^\n]*{found}[^\n]*$"):
        run("reshard", make_dataset([3]).folder, str(tmp_path / "out"), *options)
    assert not (tmp_path / "out").exists()


EVERY_TOOL = ["index", "verify", "stats", "reshard"]


@pytest.mark.parametrize("command", EVERY_TOOL)
def test_a_signal_stops_every_tool_with_exit_code_4(command: str, make_dataset: MakeDataset, s3_bucket: str) -> None:
    folder = make_dataset([1] * 40, f"{s3_bucket}/set").folder
    arguments = [command, folder, *([f"{s3_bucket}/out"] if command == "reshard" else []), "--workers", "1"]
    with WireProxy(int(os.environ["AWS_ENDPOINT_URL"].rsplit(":", 1)[1])) as proxy:
        environment = {**os.environ, "AWS_ENDPOINT_URL": proxy.endpoint, "PYTHONPATH": str(Path(__file__).parents[2])}
        process = subprocess.Popen([sys.executable, "-m", "pipeline.app", "shards", *arguments], env=environment, text=True, stderr=subprocess.PIPE)
        wait_until(lambda: proxy.connections > 0 or process.poll() is not None)
        process.terminate()
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors.strip().splitlines()[-1]) == (4, "albef: stopped early: received SIGTERM; run the same command again to continue")


@pytest.mark.parametrize("command", EVERY_TOOL)
def test_storage_that_does_not_answer_stops_every_tool_resumably(
    command: str, make_dataset: MakeDataset, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_dataset([2], f"{s3_bucket}/set").folder
    with WireProxy(int(os.environ["AWS_ENDPOINT_URL"].rsplit(":", 1)[1])) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        s3fs.S3FileSystem.clear_instance_cache()
        proxy.die()
        with pytest.raises(Stopped, match=r"^[^\n]*run the same command again[^\n]*$"):
            run(command, folder, *([f"{s3_bucket}/out"] if command == "reshard" else []))


@pytest.mark.parametrize(
    "arguments", [["reshard", "a"], ["reshard", "a", "b", "--shuffle", "-1"], ["index", "a", "--workers", "0"], ["stats", "a", "--limit", "x"]]
)
def test_usage_errors_end_with_2(arguments: list[str]) -> None:
    assert CliRunner().invoke(app, arguments).exit_code == 2


def test_help_answers_without_the_heavy_libraries() -> None:
    code = "import sys, shards.cli; from typer.testing import CliRunner; assert 'reshard' in CliRunner().invoke(shards.cli.app, ['--help']).output;"
    code += "sys.exit(any(name in sys.modules for name in ('numpy', 'pyarrow', 'PIL', 'fsspec', 'torch')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_shards_package_runs_without_torch() -> None:
    names = ("cli", "dataset", "writer", "verify", "stats", "pixels.decode", "foreign", "reshard.reshard", "contact_sheet")
    code = f"import sys, {', '.join(f'shards.{name}' for name in names)}; sys.exit('torch' in sys.modules)"
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
