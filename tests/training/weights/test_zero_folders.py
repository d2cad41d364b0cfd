"""Checkpoints that DeepSpeed wrote come in with their fp32 masters, whatever the ZeRO stage, and without a pickle being executed."""

import os
import shutil
from pathlib import Path

import published_files
import pytest
import safetensors.torch
import torch
from torch import Tensor
from torch.multiprocessing import spawn
from zero_training import TIED, train

from pipeline.core.errors import DataError
from pipeline.core.loopback import free_port
from training import checkpoint
from training.tokenizer import SPECIAL, Tokenizer
from training.weights import zero_folders
from training.weights.conversion import import_file
from training.weights.inspection import inspect

pytestmark = pytest.mark.slow
STAGES = {"stage_0": (0, False), "stage_1": (1, True), "stage_1_fp32": (1, False), "stage_2": (2, True), "stage_3": (3, True)}
WORDS = Tokenizer([*SPECIAL, *(f"word{number}" for number in range(35))])


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return published_files.tensors("pretrain")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, state: dict[str, Tensor]) -> Path:
    """Folders of two ranks, by the names of STAGES."""
    folder = tmp_path_factory.mktemp("deepspeed")
    spawn(train, (2, folder, STAGES, state, free_port()), nprocs=2)
    return folder


@pytest.mark.parametrize("name", STAGES)
def test_the_masters_are_those_that_the_engine_had(saved: Path, state: dict[str, Tensor], name: str) -> None:
    masters = safetensors.torch.load_file(saved / f"{name}.safetensors")
    found = zero_folders.read(str(saved / name))
    assert found.keys() == state.keys()
    for key in state:
        if "_m." in key or "queue" in key or key.endswith("position_ids"):
            exact = name in ("stage_0", "stage_1_fp32") or not state[key].is_floating_point() or "queue" in key
            assert torch.equal(found[key], state[key] if exact else state[TIED.get(key, key)].bfloat16().float()), key
        else:
            assert torch.equal(found[key], masters[TIED.get(key, key)]), key
            assert not torch.equal(found[key].reshape(state[key].shape), state[key]), key


def test_it_becomes_a_checkpoint_of_ours(saved: Path, tmp_path: Path) -> None:
    import_file(str(saved / "stage_2"), str(tmp_path / "ours"), WORDS)
    found, masters = checkpoint.read(str(tmp_path / "ours")), safetensors.torch.load_file(saved / "stage_2.safetensors")
    assert torch.equal(found.tensors("student")["image_encoder.pos_embed"], masters["visual_encoder.pos_embed"])
    assert found.has("teacher")
    assert found.has("queue")
    assert inspect(str(saved / "stage_2")).kind.startswith("DeepSpeed checkpoint, pre-training")


def test_a_missing_shard_a_mixed_one_and_a_split_model_are_named(saved: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(saved / "stage_2", tmp_path / "copy") / "global_step2"
    shards = sorted(folder.glob("*_optim_states.pt"))
    held = shards[1].read_bytes()
    shards[1].unlink()
    with pytest.raises(DataError, match=r"has 1 \*_optim_states\.pt of 2 ranks; copy those of all nodes"):
        zero_folders.read(str(folder))
    shards[1].write_bytes(held[: len(held) // 2])
    with pytest.raises(DataError, match=r"optim_states\.pt: not a readable checkpoint"):
        zero_folders.read(str(folder))
    shards[1].write_bytes(held)
    (folder / "mp_rank_01_model_states.pt").write_bytes(b"")
    with pytest.raises(DataError, match="split over several GPUs"):
        zero_folders.read(str(folder))


class Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("executed",)


def test_code_in_a_shard_is_not_executed(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shutil.copytree(saved / "stage_1", tmp_path / "copy") / "global_step2"
    torch.save({"optimizer_state_dict": Harmful()}, sorted(folder.glob("*_optim_states.pt"))[0])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"it holds code \(posix\.mkdir\) and is not loaded"):
        zero_folders.read(str(folder))
    assert not Path("executed").exists()
