"""`albef checkpoint` as its user meets it, with no network: what is this, in, out, and one line with exit code 2 for every mistake."""

import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import published_files
import pytest
import tiny_run
import torch

from pipeline.app.cli import exit_code_of
from training import checkpoint
from training.cli import app
from training.tokenizer import SPECIAL, Tokenizer

DOCS = Path(__file__).parents[2] / "docs" / "weights.md"
# Runs the command with every way to the outside closed, and notes who tried.
OFFLINE = """
import socket, sys
def refuse(self, address, *_):
    if self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "::1", "localhost"):
        return original(self, address)
    open(NOTES, "a").write(f"{address}\\n")
    raise OSError(f"no network: {address}")
def unresolved(host, *arguments, **options):
    if host in (None, "", "127.0.0.1", "::1", "localhost", socket.gethostname()):
        return resolve(host, *arguments, **options)
    open(NOTES, "a").write(f"{host}\\n")
    raise socket.gaierror(f"no network: {host}")
original, resolve = socket.socket.connect, socket.getaddrinfo
socket.socket.connect, socket.getaddrinfo = refuse, unresolved
from pipeline.app.cli import main
sys.argv = ["albef", *ARGUMENTS]
main()
"""


def albef(notes: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, offline; attempts to reach the network are in `notes`."""
    program = OFFLINE.replace("NOTES", repr(str(notes))).replace("ARGUMENTS", repr(list(arguments)))
    environment = {name: value for name, value in tiny_run.environment().items() if not name.startswith("HF_")}
    return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False, timeout=280)


def here(*arguments: str) -> int:
    """The command in this process; its exit code."""
    return exit_code_of(lambda: app(list(arguments), standalone_mode=False))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained checkpoint, everything that can be made of it, and a run that started from it; made with no network."""
    folder = tmp_path_factory.mktemp("world")
    tiny_run.write_dataset(folder / "dataset", samples=48)
    config = tiny_run.configuration(folder / "run", folder / "dataset", max_steps=3)
    commands = [["train", str(config)]]
    for name, out in {"albef": "out.pth", "safetensors": "exported", "timm": "vit.pth", "bert": "bert"}.items():
        commands.append(["checkpoint", "export", str(checkpoints(folder)), str(folder / out), "--format", name])
    heads = ["--vision-heads", "2", "--text-heads", "2"]
    commands.append(["checkpoint", "import", str(folder / "out.pth"), str(folder / "back"), "--tokenizer", str(folder / "exported"), *heads])
    further = tiny_run.configuration(folder / "further", folder / "dataset", max_steps=1)
    commands.append(["train", str(further), f"training.init.checkpoint={checkpoints(folder)}"])
    for command in commands:
        done = albef(folder / "attempts", *command)
        assert done.returncode == 0, (command, done.stderr)
    return folder


def checkpoints(world: Path) -> Path:
    return world / "run" / "train" / "checkpoints"


def test_training_exporting_importing_and_starting_again_need_no_network(world: Path) -> None:
    assert not (world / "attempts").exists()


def test_a_hub_name_without_a_network_is_one_line(world: Path, tmp_path: Path) -> None:
    done = albef(tmp_path / "attempts", "checkpoint", "import", str(world / "out.pth"), str(tmp_path / "out"))
    assert done.returncode == 2
    assert (tmp_path / "attempts").exists()  # the fence stands where the network was
    ours = [line for line in done.stderr.splitlines() if line.startswith("albef: ")]
    assert len(ours) == 1
    assert "bert-base-uncased: no vocabulary; expected a vocab.txt, a folder with one, or a BERT of the Hugging Face hub" in ours[0]


def test_what_was_exported_and_imported_is_what_was_trained(world: Path) -> None:
    trained, back = checkpoint.read(str(checkpoints(world))), checkpoint.read(str(world / "back"))
    for name in ("student", "teacher", "queue"):
        expected, found = trained.tensors(name), back.tensors(name)
        if name == "teacher":  # have no momentum copy in a published file
            expected = {key: value for key, value in expected.items() if not key.startswith(("itm_head.", "temperature"))}
        if name == "queue":  # and the numbers of the dataset's pictures mean nothing elsewhere
            expected.pop("ids")
        assert all(torch.equal(found[key], value) for key, value in expected.items()), name
    assert back.state["queue_position"] == trained.state["queue_position"]
    assert back.tokenizer().vocabulary() == trained.tokenizer().vocabulary()


def test_a_run_that_starts_from_a_checkpoint_has_its_student_teacher_and_queue(world: Path) -> None:
    """The first step has learning rate 0: the student stays, the teacher moves a tenth towards it, 16 of 24 features are new."""
    start, after = checkpoint.read(str(checkpoints(world))), checkpoint.read(str(world / "further" / "train" / "checkpoints"))
    assert after.step == 1
    student, teacher = start.tensors("student"), start.tensors("teacher")
    moved = after.tensors("teacher")
    for name, value in after.tensors("student").items():
        assert torch.equal(value, student[name]), name
        torch.testing.assert_close(moved[name], 0.9 * teacher[name] + 0.1 * student[name], atol=1e-7, rtol=1e-5)
    assert any(not torch.equal(moved[name], student[name]) for name in moved)
    kept = [(start.state["queue_position"] + offset) % 24 for offset in range(16, 24)]
    assert torch.equal(after.tensors("queue")["image"][kept], start.tensors("queue")["image"][kept])


def test_an_imported_checkpoint_is_not_taken_for_a_run_to_go_on_with(world: Path, tmp_path: Path) -> None:
    config = tiny_run.configuration(tmp_path / "run", world / "dataset")
    target = tmp_path / "run" / "train" / "checkpoints"
    arguments = ["--tokenizer", str(world / "exported"), "--vision-heads", "2", "--text-heads", "2"]
    assert here("import", str(world / "out.pth"), str(target), *arguments) == 0
    done = albef(tmp_path / "attempts", "train", str(config))
    assert done.returncode == 2, done.stderr
    assert "has no run of ours behind it to go on with; start from it with training.init.checkpoint" in done.stderr


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("run", ["checkpoint of ours", "all checksums right", "step         3"]),
        ("run/train/checkpoints", ["checkpoint of ours", "all checksums right", "step         3", "teacher      yes", "optimizer    yes", "temperature  0.0"]),
        ("back", ["checkpoint of ours", "imported     out.pth, pre-training", "optimizer    no: a run cannot go on from it, but start from it"]),
        ("out.pth", ["published ALBEF file, pre-training", "teacher      yes", "queue        24 features, position 0", "1 and 1, as given or 64 wide"]),
        ("exported", ["model that albef exported", "tower        student", "step         3"]),
        ("vit.pth", ["timm ViT", "blocks       1 of width 32, patches of 16 px, 2 x 2 positions (32 px)", "classifier   no"]),
        ("bert", ["Hugging Face BERT", "num_hidden_layers 2", "MLM head     yes", "vocab.txt    yes"]),
    ],
)
def test_inspect_says_what_it_is(world: Path, what: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert here("inspect", str(world / what)) == 0
    shown = capsys.readouterr().out
    for word in words:
        assert word in shown, shown


@pytest.mark.parametrize("kind", published_files.KINDS)
def test_inspect_names_the_kind_of_a_published_file_and_counts_its_parameters(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    state = published_files.tensors(kind)
    torch.save({"model": state}, tmp_path / "file.pth")
    assert here("inspect", str(tmp_path / "file.pth"), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    titles = {"pretrain": "pre-training", "retrieval": "retrieval or grounding", "vqa": "VQA", "ve": "SNLI-VE", "nlvr": "NLVR2", "ta": "text assignment"}
    assert found["kind"] == f"published ALBEF file, {titles[kind]}, {len(state)} tensors"
    assert found["parameters"]["image_encoder"] == sum(value.numel() for name, value in state.items() if name.startswith("visual_encoder."))
    assert found["model"]["fusion_layers"] == (4 if kind in ("nlvr", "ta") else 2)


def test_inspect_names_the_damaged_file_of_a_checkpoint(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = Path(checkpoint.read(str(world / "back")).path)
    for file in source.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    data = bytearray((tmp_path / "student.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "student.safetensors").write_bytes(data)
    assert here("inspect", str(tmp_path)) == 2
    assert re.search(r"^albef: .*student\.safetensors: damaged", capsys.readouterr().err, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["inspect", "no/such/thing"], ["no/such/thing: neither a folder of weights", "expected a checkpoint of ours, a published ALBEF file"]),
        (["inspect", "none.pth"], ["none.pth: no such checkpoint file"]),
        (["export", "no/such/thing", "out.pth", "--format", "albef"], ["no/such/thing: no weights here"]),
        (["import", "none.pth", "out", "--tokenizer", "no/vocab.txt"], ["no/vocab.txt: not found"]),
        (["import", "exported", "out", "--tokenizer", "no/vocab.txt"], ["--tokenizer no/vocab.txt: exported is a folder with a vocabulary of its own"]),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert here(*arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("albef: ")
    for word in words:
        assert word in line


def test_the_original_codes_file_comes_back_with_the_same_tensors_under_the_same_keys(tmp_path: Path) -> None:
    golden = Path(__file__).parents[1] / "data" / "albef_tiny" / "checkpoint.pth"
    (tmp_path / "vocab.txt").write_bytes(Tokenizer([*SPECIAL, *(f"word{number}" for number in range(995))]).vocabulary_file())
    heads = ["--vision-heads", "4", "--text-heads", "4"]
    assert here("import", str(golden), str(tmp_path / "checkpoint"), "--tokenizer", str(tmp_path / "vocab.txt"), *heads) == 0
    assert here("export", str(tmp_path / "checkpoint"), str(tmp_path / "out.pth"), "--format", "albef") == 0
    before, after = (torch.load(path, weights_only=True)["model"] for path in (golden, tmp_path / "out.pth"))
    assert set(before) == set(after)
    assert all(torch.equal(before[name], after[name]) and before[name].shape == after[name].shape for name in before)


def test_the_five_lines_of_the_documentation_load_an_export_and_the_next_use_it(world: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert len([line for line in blocks[0].splitlines() if line.strip()]) == 5
    assert blocks[0] in (DOCS.parents[1] / "README.md").read_text()
    cv2.imwrite(str(world / "star.png"), np.full((40, 50, 3), 200, dtype=np.uint8))
    program = "".join(blocks[:2]).replace('"runs/demo/exported"', repr(str(world / "exported"))).replace('"pictures"', repr(str(world)))
    done = subprocess.run([sys.executable, "-c", program], env=tiny_run.environment(), capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    similarities = [float(number) for number in re.findall(r"-?\d+\.\d+(?:e-\d+)?", done.stdout)]
    assert len(similarities) == 2
    assert all(-1 <= number <= 1 for number in similarities)
