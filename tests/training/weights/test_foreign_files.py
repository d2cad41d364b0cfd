"""Files of strangers: nothing in them is executed, nothing they claim is believed, and each ends in one line."""

import argparse
import contextlib
import os
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import published_files
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM

from pipeline.core.errors import ConfigError, DataError
from training.model import Albef
from training.model_config import ModelConfig
from training.weights.bert import load_hf_bert
from training.weights.files import read_weights, write_once
from training.weights.inspection import inspect
from training.weights.published import import_published
from training.weights.vit import load_timm_vit, timm_state

GOLDEN = Path(__file__).parents[2] / "data" / "albef_tiny" / "checkpoint.pth"
SMALL = ModelConfig(image_size=32, vision_width=32, vision_depth=1, vision_heads=2, text_hidden=24, text_heads=2, text_layers=1, fusion_layers=1, vocab_size=60)
TENSOR = {"a.weight": torch.ones(2)}


class Command:
    """Unpickling it runs a command."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.system, ("touch trapped",))


def bert_folder(folder: Path) -> Path:
    sizes = {"vocab_size": 60, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    BertForMaskedLM(BertConfig(**sizes)).save_pretrained(folder)
    return folder


class Read(Exception):
    """It was read after all."""


def refusal(path: Path) -> DataError:
    try:
        read_weights(str(path))
    except DataError as error:
        return error
    raise Read


def one_line(reader: Callable[[], object]) -> str:
    with pytest.raises(DataError) as caught:
        reader()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("wrapped", ["bare pickle", "torch", "inside a list of a real checkpoint"])
def test_a_pickle_that_runs_a_command_is_refused_and_not_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrapped: str) -> None:
    monkeypatch.chdir(tmp_path)
    if wrapped == "bare pickle":
        Path("evil.pth").write_bytes(pickle.dumps({"model": Command()}, protocol=2))
    elif wrapped == "torch":
        torch.save({"model": Command()}, "evil.pth")
    else:
        torch.save({**torch.load(GOLDEN, weights_only=True), "optimizer": [Command()]}, "evil.pth")
    for reader in (lambda: import_published("evil.pth"), lambda: load_timm_vit(Albef(SMALL), "evil.pth"), lambda: inspect("evil.pth")):
        assert "evil.pth: not a readable checkpoint of plain tensors" in one_line(reader)
    assert not Path("trapped").exists()
    with Path("evil.pth").open("rb") as file:  # the trap is a real one
        torch.load(file, weights_only=False) if wrapped != "bare pickle" else pickle.load(file)
    assert Path("trapped").exists()


def test_the_bin_file_of_a_bert_is_not_executed_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = bert_folder(tmp_path / "bert")
    monkeypatch.chdir(tmp_path)
    (folder / "model.safetensors").unlink()
    torch.save({"bert.embeddings.word_embeddings.weight": Command()}, folder / "pytorch_model.bin")
    assert "cannot be loaded" in one_line(lambda: load_hf_bert(Albef(SMALL), str(folder)))
    assert "pytorch_model.bin: not a readable checkpoint" in one_line(lambda: inspect(str(folder)))
    assert not (tmp_path / "trapped").exists()


def test_code_that_a_bert_folder_brings_along_is_not_imported(tmp_path: Path) -> None:
    folder = bert_folder(tmp_path / "bert")
    config = (folder / "config.json").read_text().replace("{", '{"auto_map": {"AutoModelForMaskedLM": "trap.Trap"},', 1)
    (folder / "config.json").write_text(config)
    (folder / "trap.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'trapped')!r}).touch()\nclass Trap: ...\n")
    sizes = SMALL.model_copy(update={"text_intermediate": 48})
    load_hf_bert(Albef(sizes), str(folder))
    assert not (tmp_path / "trapped").exists()


def test_a_compressed_bomb_is_refused_before_it_unpacks(tmp_path: Path) -> None:
    torch.save({"model": {"weight": torch.zeros(1_000_000)}}, tmp_path / "flat.pth")
    with zipfile.ZipFile(tmp_path / "flat.pth") as flat, zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb:
        for name in flat.namelist():
            bomb.writestr(name, flat.read(name))
    assert (tmp_path / "bomb.pth").stat().st_size < 10_000
    assert "its records are compressed" in one_line(lambda: read_weights(str(tmp_path / "bomb.pth")))


def test_a_tensor_that_repeats_one_number_a_trillion_times_is_refused(tmp_path: Path) -> None:
    state = torch.load(GOLDEN, weights_only=True)["model"]
    state["text_encoder.bert.embeddings.word_embeddings.weight"] = torch.zeros(1).expand(10**9, 64)
    torch.save({"model": state}, tmp_path / "endless.pth")
    assert "claims the shape (1000000000, 64), but the file stores less" in one_line(lambda: import_published(str(tmp_path / "endless.pth")))


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.9999])
def test_a_truncated_file_is_one_line(tmp_path: Path, share: float) -> None:
    data = GOLDEN.read_bytes()
    (tmp_path / "half.pth").write_bytes(data[: int(len(data) * share)])
    assert "half.pth: not a readable checkpoint" in one_line(lambda: import_published(str(tmp_path / "half.pth")))
    save_file({"weight": torch.zeros(1000)}, tmp_path / "whole.safetensors")
    data = (tmp_path / "whole.safetensors").read_bytes()
    (tmp_path / "half.safetensors").write_bytes(data[: int(len(data) * share)])
    assert "half.safetensors: not a readable checkpoint" in one_line(lambda: read_weights(str(tmp_path / "half.safetensors")))


def test_a_file_with_flipped_bytes_is_read_or_refused_in_one_line(tmp_path: Path) -> None:
    """Two hundred times, in the pickle and the directory of a small torch file and in a safetensors header."""
    torch.save({"model": {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2)}}, tmp_path / "small.pth")
    save_file({"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2)}, tmp_path / "small.safetensors")
    chance, messages = random.Random(0), []
    for name in ("small.pth", "small.safetensors"):
        original = (tmp_path / name).read_bytes()
        for _ in range(100):
            data = bytearray(original)
            for _ in range(3):
                data[chance.randrange(len(data))] = chance.randrange(256)
            (tmp_path / f"flipped.{name}").write_bytes(data)
            with contextlib.suppress(Read):
                messages.append(str(refusal(tmp_path / f"flipped.{name}")))
    assert len(messages) > 50
    assert not [message for message in messages if "\n" in message]


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda path: torch.save({"model": Command()}, path), "it holds code (posix.system) and is not loaded)"),
        (lambda path: path.write_bytes(pickle.dumps(Command(), protocol=2)), "it holds code (posix.system) and is not loaded)"),
        (lambda path: path.write_bytes(pickle.dumps(Command(), protocol=4)), "it holds code (posix.system) and is not loaded)"),
        (lambda path: torch.save(torch.nn.Linear(2, 2), path), "it holds code (torch.nn.modules.linear.Linear"),
        (
            lambda path: torch.save({"model": TENSOR, "config": argparse.Namespace(lr=1)}, path),
            "it holds argparse.Namespace beside its tensors; its author can save the tensors alone: torch.save({'model': model.state_dict()}, FILE))",
        ),
        (lambda path: torch.save({"model": TENSOR, "best": np.float64(3)}, path), "it holds numpy."),
        (lambda path: torch.save({"model": TENSOR}, path, pickle_protocol=4), "pickled with protocol 4, torch.save's own is 2"),
        (lambda path: path.write_bytes(GOLDEN.read_bytes()[:5000]), "cut short: its directory, which comes last, is not there)"),
        (lambda path: path.write_bytes(b""), "it is empty)"),
        (lambda path: path.write_text("hello"), "not a torch file, it begins with b'hell')"),
        (lambda path: zipfile.ZipFile(path, "w").writestr("a.txt", "hello"), "a zip archive, but not one of torch.save)"),
        (lambda path: path.write_bytes(pickle.dumps({"model": {"a": 1}}, protocol=2)), "cut short or damaged, or a pickle without tensors)"),
        (lambda path: damage_a_record(path), "damaged: one of its records cannot be read)"),
    ],
)
def test_why_a_file_is_not_read_is_said_by_its_cause_and_with_no_advice_to_execute_it(tmp_path: Path, write: Callable[[Path], object], reason: str) -> None:
    write(tmp_path / "file.pth")
    message = one_line(lambda: read_weights(str(tmp_path / "file.pth")))
    assert f"file.pth: not a readable checkpoint of plain tensors ({reason}" in message
    assert "weights_only" not in message


def damage_a_record(path: Path) -> None:
    torch.save({"model": TENSOR}, path)
    with zipfile.ZipFile(path) as archive:
        record = next(entry for entry in archive.infolist() if "/data/" in entry.filename)
    data = bytearray(path.read_bytes())
    data[record.header_offset : record.header_offset + 4] = b"none"
    path.write_bytes(data)


@pytest.mark.parametrize("content", [[1, 2], {"model": {}}, {"model": {"a": 1}}, {1: torch.zeros(1)}, torch.zeros(3)])
def test_a_file_without_named_tensors_is_one_line(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "odd.pth")
    assert "holds no named tensors" in one_line(lambda: read_weights(str(tmp_path / "odd.pth")))


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    assert "none.pth: no such checkpoint file" in one_line(lambda: import_published(str(tmp_path / "none.pth")))


def test_a_foreign_file_of_tensors_is_named_by_its_first_keys(tmp_path: Path) -> None:
    save_file({f"conv{number}.weight": torch.zeros(2) for number in range(5)}, tmp_path / "resnet.safetensors")
    assert "5 tensors (conv0.weight, conv1.weight, conv2.weight, ...) of an unknown model" in one_line(lambda: inspect(str(tmp_path / "resnet.safetensors")))


@pytest.mark.parametrize("cast", [torch.float32, torch.float16])
def test_a_file_with_a_number_that_is_none_is_named_with_its_tensor(tmp_path: Path, cast: torch.dtype) -> None:
    state = {name: value.to(cast) if value.is_floating_point() else value for name, value in published_files.tensors("ve").items()}
    state["cls_head.0.weight"][0, 0] = float("nan")
    torch.save(state, tmp_path / "file.pth")
    assert "file.pth: NaN or infinite numbers in cls_head.0.weight; a run diverged" in one_line(lambda: inspect(str(tmp_path / "file.pth")))


def vit_state() -> dict[str, torch.Tensor]:
    return timm_state(Albef(SMALL).state_dict()) | {"head.weight": torch.zeros(10, 32)}


def test_a_whole_vit_with_its_classifier_is_inspected(tmp_path: Path) -> None:
    save_file(vit_state(), tmp_path / "vit.safetensors")
    assert inspect(str(tmp_path / "vit.safetensors")).holds["classifier"] is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks.0.mlp.fc2.bias": None}, "missing blocks.0.mlp.fc2.bias"),
        ({"blocks.0.mlp.fc1.weight": None}, "missing blocks.0.mlp.fc1.weight"),
        ({"dist_token": torch.zeros(1, 1, 32)}, "unexpected dist_token"),
        ({"norm.bias": torch.zeros(31)}, "norm.bias has shape (31,), the model's is (32,)"),
        ({"pos_embed": torch.zeros(1, 6, 32)}, "pos_embed has shape (1, 6, 32), the model's is (1, 5, 32)"),
        ({"pos_embed": torch.zeros(5)}, "pos_embed has shape (5,)"),
        ({"patch_embed.proj.weight": torch.zeros(32, 768)}, "patch_embed.proj.weight has shape (32, 768), expected 4 dimensions"),
    ],
)
def test_a_vit_with_a_tensor_too_few_or_of_another_shape_is_not_inspected_as_one(tmp_path: Path, change: dict[str, torch.Tensor | None], message: str) -> None:
    save_file({name: value for name, value in {**vit_state(), **change}.items() if value is not None}, tmp_path / "vit.safetensors")
    assert message in one_line(lambda: inspect(str(tmp_path / "vit.safetensors")))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("bert.encoder.layer.1.output.dense.bias", None, "missing encoder.layer.1.output.dense.bias"),
        ("bert.encoder.layer.0.output.dense.bias", torch.zeros(3), "encoder.layer.0.output.dense.bias has shape (3,), the model's is (24,)"),
        ("cls.predictions.transform.dense.weight", None, "missing cls.predictions.transform.dense.weight"),
        ("bert.embeddings.LayerNorm.weight", torch.full((24,), float("inf")), "NaN or infinite numbers in bert.embeddings.LayerNorm.weight"),
    ],
)
def test_a_bert_folder_that_is_not_what_its_settings_say_is_one_line(tmp_path: Path, name: str, change: torch.Tensor | None, message: str) -> None:
    file = bert_folder(tmp_path) / "model.safetensors"
    state = load_file(file)
    assert inspect(str(tmp_path)).holds["MLM head"]
    save_file({key: value for key, value in {**state, name: change}.items() if value is not None}, file)
    assert message in one_line(lambda: inspect(str(tmp_path)))


def test_a_bert_with_the_old_names_of_its_norms_and_without_a_head_is_inspected(tmp_path: Path) -> None:
    file = bert_folder(tmp_path) / "model.safetensors"
    names = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    save_file({renamed(key.removeprefix("bert."), names): value for key, value in load_file(file).items() if key.startswith("bert.")}, file)
    assert "embeddings" in inspect(str(tmp_path)).parameters


def renamed(key: str, names: dict[str, str]) -> str:
    for before, after in names.items():
        key = key.replace(before, after)
    return key


def test_files_are_written_all_or_none_and_never_over_others(tmp_path: Path) -> None:
    one, two = str(tmp_path / "out" / "one"), str(tmp_path / "out" / "two")
    write_once({one: b"1", two: b"2"})
    write_once({one: b"1", two: b"2"})
    Path(one).unlink()
    with pytest.raises(ConfigError, match="two: another file is there, and nothing is overwritten"):
        write_once({one: b"1", two: b"3"})
    assert not Path(one).exists()
    assert Path(two).read_bytes() == b"2"
