"""Checkpoints: whole or invisible, verified before `latest` names them, and refused in one line where they do not fit."""

import json
from pathlib import Path

import pytest
import torch

from pipeline.core import storage
from pipeline.core.errors import DataError
from training import checkpoint
from training.model import Albef
from training.model_config import ModelConfig
from training.tokenizer import Tokenizer

TINY = ModelConfig(
    image_size=16, patch_size=8, vision_width=8, vision_depth=1, vision_heads=2, text_hidden=8, text_heads=2, text_layers=1, fusion_layers=1,
    text_intermediate=16, vocab_size=8, max_positions=8, embed_dim=4,
)  # fmt: skip
TOKENIZER = Tokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "star"])


def weights(seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {name: parameter.detach() for name, parameter in Albef(TINY).named_parameters()}


def write(folder: Path, step: int, sizes: ModelConfig = TINY) -> checkpoint.Checkpoint:
    record = {"state": {"step": step}, "model": sizes.model_dump(mode="json"), "training": {}}
    return checkpoint.write(str(folder), step, {"student": weights(step), "teacher": weights(step + 100)}, TOKENIZER, record)


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def test_what_was_written_is_read_back_bit_for_bit(tmp_path: Path) -> None:
    write(tmp_path, 7)
    found = checkpoint.read(str(tmp_path))
    assert (found.step, found.model_config) == (7, TINY)
    assert all(torch.equal(found.tensors("student")[name], tensor) for name, tensor in weights(7).items())
    model, tokenizer, sizes = checkpoint.load_for_evaluation(str(tmp_path), "teacher")
    assert torch.equal(model.itm_head.weight, weights(107)["itm_head.weight"])
    assert (tokenizer.vocab_size, sizes, model.training) == (8, TINY, False)


def test_tied_weights_stay_tied_after_loading(tmp_path: Path) -> None:
    write(tmp_path, 1)
    model, *_ = checkpoint.load_for_evaluation(str(tmp_path))
    assert model.mlm_head.decoder.weight is model.text_encoder.embeddings.word.weight


def test_a_folder_without_a_manifest_is_no_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, 1)
    half = tmp_path / checkpoint.name_of(2)
    storage.write_bytes(str(half / "student.safetensors"), b"half")
    found = checkpoint.newest(str(tmp_path))
    assert found is not None
    assert found.step == 1
    with pytest.raises(DataError, match=r"no checkpoint here \(no manifest\.json\)"):
        checkpoint.read(str(half))


def test_a_damaged_newest_one_gives_way_to_the_one_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, 1)
    write(tmp_path, 2)
    flip_a_byte(tmp_path / checkpoint.name_of(2) / "student.safetensors")
    found = checkpoint.newest(str(tmp_path))
    assert found is not None
    assert found.step == 1
    assert "damaged" in caplog.text


def test_when_none_is_whole_it_says_so_and_does_not_start_again(tmp_path: Path) -> None:
    write(tmp_path, 1)
    flip_a_byte(tmp_path / checkpoint.name_of(1) / "teacher.safetensors")
    with pytest.raises(DataError, match="no checkpoint up to it is whole"):
        checkpoint.newest(str(tmp_path))


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write(tmp_path, step)
    checkpoint.remove_old(str(tmp_path), keep=2)
    assert [path.name for path in sorted(tmp_path.glob("step-*"))] == [checkpoint.name_of(2), checkpoint.name_of(3)]


def test_one_that_latest_never_named_is_not_counted_among_the_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write(tmp_path, step)
    storage.write_bytes(str(tmp_path / "latest"), checkpoint.name_of(2).encode())  # killed before 3 was verified
    checkpoint.remove_old(str(tmp_path), keep=1)
    assert [path.name for path in tmp_path.glob("step-*")] == [checkpoint.name_of(2)]


def test_weights_of_another_shape_name_the_tensor_and_both_shapes(tmp_path: Path) -> None:
    write(tmp_path, 1, sizes=TINY.model_copy(update={"embed_dim": 6}))
    with pytest.raises(DataError, match=r"student\.safetensors.*(image|text)_projection\.(bias|weight) has shape") as caught:
        checkpoint.load_for_evaluation(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_another_programs_manifest_is_refused(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "manifest.json"), json.dumps({"format": 99}).encode())
    with pytest.raises(DataError, match="not a checkpoint manifest of format 1"):
        checkpoint.read(str(tmp_path))


def test_a_checkpoint_on_s3_is_the_same(s3_bucket: str) -> None:
    folder = f"{s3_bucket}/run/checkpoints"
    record = {"state": {"step": 5}, "model": TINY.model_dump(mode="json"), "training": {}}
    for step in (4, 5):
        checkpoint.write(folder, step, {"student": weights(step)}, TOKENIZER, {**record, "state": {"step": step}})
    checkpoint.remove_old(folder, keep=1)
    found = checkpoint.newest(folder)
    assert found is not None
    assert found.step == 5
    assert torch.equal(found.tensors("student")["itm_head.bias"], weights(5)["itm_head.bias"])
    assert storage.list_folders(folder) == [checkpoint.name_of(5)]
