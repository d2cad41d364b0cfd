"""A small benchmark on disk and a tiny untrained ALBEF to score on it."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eval.config import EvalConfig
from eval.predictor import AlbefPredictor
from training.model import Albef
from training.model_config import ModelConfig
from training.tokenizer import Tokenizer, train_vocabulary

WORDS = ("red", "green", "blue", "round", "square", "left", "right", "of", "a", "the", "star", "moon")
CAPTIONS = (3, 1, 5, 2, 4)  # captions of the images in turn


class Benchmark:
    """Pictures, a Karpathy file and a contrast file in a folder."""

    def __init__(self, folder: Path, images: int = 15) -> None:
        self.folder, self.pictures = folder, folder / "pictures"
        self.pictures.mkdir(parents=True)
        rng = np.random.default_rng(0)
        entries, contrast = [], {}
        for number in range(images):
            name = f"{number:03d}.png"
            Image.fromarray(rng.integers(0, 256, (24, 36, 3), dtype=np.uint8)).save(self.pictures / name)
            captions = [" ".join(rng.choice(WORDS, size=rng.integers(2, 8))) for _ in range(CAPTIONS[number % len(CAPTIONS)])]
            split = "val" if number % 5 == 4 else "test"
            entries.append({"filename": name, "split": split, "imgid": number, "sentences": [{"raw": caption} for caption in captions]})
            contrast[str(number)] = {"filename": name, "caption": captions[0], "negative_caption": captions[0] + " moon"}
        self.annotations, self.contrast = folder / "karpathy.json", folder / "swapped.json"
        self.annotations.write_text(json.dumps({"images": entries, "dataset": "tiny"}))
        self.contrast.write_text(json.dumps(contrast))

    def config(self, **options: object) -> EvalConfig:
        """Both tasks, with options of the retrieval."""
        retrieval = {"annotations": str(self.annotations), "pictures": str(self.pictures), "k_test": 6, "itm_loss_pairs": 20, "gallery": 2, **options}
        return EvalConfig(tasks={"retrieval": retrieval, "contrast": {"files": [str(self.contrast)], "pictures": str(self.pictures)}})


def tiny_tokenizer() -> Tokenizer:
    return train_vocabulary(WORDS, 100)


def tiny_model(seed: int = 0) -> Albef:
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer()
    config = ModelConfig(
        image_size=16, patch_size=8, vision_width=16, vision_depth=1, vision_heads=2, text_hidden=16, text_heads=2, text_layers=1, fusion_layers=2,
        text_intermediate=32, vocab_size=tokenizer.vocab_size, max_positions=32, embed_dim=8, init_std=0.3,
    )  # fmt: skip
    return Albef(config)


def tiny_predictor(seed: int = 0, **options: object) -> AlbefPredictor:
    return AlbefPredictor(tiny_model(seed), tiny_tokenizer(), 16, **{"device": "cpu", **options})  # type: ignore[arg-type]


@pytest.fixture
def benchmark_on_disk(tmp_path: Path) -> Benchmark:
    return Benchmark(tmp_path / "benchmark")


@pytest.fixture
def predictor() -> AlbefPredictor:
    return tiny_predictor()


@pytest.fixture
def make_predictor() -> Callable[..., AlbefPredictor]:
    return tiny_predictor
