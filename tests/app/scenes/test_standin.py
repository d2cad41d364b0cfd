import json
from pathlib import Path

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

from pipeline.app.scenes.config import ScenesConfig, StandinConfig
from pipeline.app.scenes.standin import labelled_pictures, train_standin

TINY = ScenesConfig(
    processes=1, standin=StandinConfig(resolution=32, patch_size=8, embed_dim=64, depth=1, pictures=1_000, held_out=300, epochs=10, batch_size=32, peak_lr=2e-3)
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("standin")
    train_standin(TINY, out)
    return out


def test_the_stand_in_is_an_ordinary_timm_checkpoint(folder: Path) -> None:
    record = json.loads((folder / "standin_vit.json").read_text())
    model = VisionTransformer(**record["architecture"])
    timm.models.load_checkpoint(model, str(folder / "standin_vit.pth"), strict=True)
    assert "stand-in" in record["what"]


def test_the_stand_in_soon_learns_colours(folder: Path) -> None:
    assert json.loads((folder / "standin_vit.json").read_text())["colour_accuracy"] > 0.5  # chance: 0.125


def test_a_finished_stand_in_is_not_trained_again(folder: Path) -> None:
    before = (folder / "standin_vit.pth").stat().st_mtime_ns
    assert train_standin(TINY, folder).stat().st_mtime_ns == before


def test_the_same_seed_gives_the_same_weights(folder: Path, tmp_path: Path) -> None:
    again = torch.load(train_standin(TINY, tmp_path), weights_only=True)["model"]
    first = torch.load(folder / "standin_vit.pth", weights_only=True)["model"]
    assert all(torch.equal(again[name], first[name]) for name in first)


def test_labelled_pictures_do_not_depend_on_the_number_of_processes() -> None:
    one, two = (labelled_pictures(TINY.model_copy(update={"processes": processes}), "train", 1_100) for processes in (1, 2))
    assert (one[0] == two[0]).all()
    assert (one[1] == two[1]).all()
