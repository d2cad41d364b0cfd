"""Our model as other programs take it: one tower in model.safetensors, its sizes in config.json, its tokenizer in vocab.txt."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import safetensors.torch
from torch import Tensor

from pipeline.core import storage
from pipeline.core.config import validate
from pipeline.core.errors import DataError
from training.model import Albef
from training.model_config import ModelConfig
from training.tokenizer import Tokenizer
from training.weights.files import State, check_names, check_shapes, load_strictly, safetensors_in
from training.weights.published import parameter_shapes

MODEL_TYPE = "albef"
TIED = {"mlm_head.decoder.weight": "text_encoder.embeddings.word.weight"}  # safetensors stores one tensor once


@dataclass(frozen=True)
class Exported:
    """A folder that `portable_files` filled: the parameters, each once."""

    weights: State
    config: ModelConfig
    tokenizer: Tokenizer
    about: dict[str, Any]  # tower, step


def portable_files(weights: Mapping[str, Tensor], config: ModelConfig, tokenizer: Tokenizer, about: Mapping[str, Any]) -> dict[str, bytes]:
    """File name -> content; config.json comes last, so a folder that has it is whole."""
    state = {name: value.detach().cpu().contiguous() for name, value in weights.items() if name not in TIED}
    settings = {"model_type": MODEL_TYPE, **about, "model": config.model_dump(mode="json")}
    return {
        "vocab.txt": tokenizer.vocabulary_file(),
        "model.safetensors": safetensors.torch.save(state, metadata={"format": "pt"}),
        "config.json": (json.dumps(settings, indent=1) + "\n").encode(),
    }


def read_exported(folder: str) -> Exported:
    """What `albef checkpoint export --format safetensors` wrote; raises DataError when the folder is another or is damaged."""
    settings = model_settings(folder)
    if settings.get("model_type") != MODEL_TYPE or not isinstance(settings.get("model"), dict):
        raise DataError(f"{folder}/config.json: not of a model that albef exported (model_type {settings.get('model_type')!r})")
    path = storage.join(folder, "model.safetensors")
    config = validate(ModelConfig, settings["model"], origin=f"{folder}/config.json")
    tokenizer = Tokenizer.load(storage.join(folder, "vocab.txt"))
    about = {name: value for name, value in settings.items() if name not in ("model_type", "model")}
    weights, shapes = safetensors_in(storage.read_bytes(path), path), parameter_shapes(config)
    check_names(path, shapes, weights)
    check_shapes(path, shapes, weights)
    return Exported(weights, config, tokenizer, about)


def load_exported(folder: str) -> tuple[Albef, Tokenizer]:
    """The model in evaluation mode, and its tokenizer, from an exported folder on disk or s3://.

    Raises:
        DataError: another kind of folder, damaged, or weights that do not fit its config.json.
    """
    exported = read_exported(folder)
    model = Albef(exported.config)
    load_strictly(model, with_tied(exported.weights), origin=storage.join(folder, "model.safetensors"))
    return model.eval().requires_grad_(False), exported.tokenizer


def model_settings(folder: str) -> dict[str, Any]:
    """config.json of an exported folder or of a Hugging Face one."""
    path = storage.join(folder, "config.json")
    try:
        settings = json.loads(storage.read_bytes(path))
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error})") from error
    if not isinstance(settings, dict):
        raise DataError(f"{path}: expected an object with settings, found {type(settings).__name__}")
    return settings


def with_tied(state: State) -> State:
    """With the second names of tensors that are stored once."""
    return state | {second: state[first] for second, first in TIED.items() if first in state}
