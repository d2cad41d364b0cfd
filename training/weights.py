"""Weights from elsewhere and to elsewhere: published ALBEF files (both ways), timm ViTs, Hugging Face BERTs. Pickles are never executed."""

import logging
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.core import storage
from pipeline.core.config import validate
from pipeline.core.errors import DataError
from training.feature_queue import FeatureQueue
from training.model import Albef
from training.model_config import ModelConfig
from training.vision import resized_positions

log = logging.getLogger(__name__)

State = dict[str, Tensor]

# Ours -> the published files' (module names; weights and biases keep their names).
MODULES = {
    "image_projection": "vision_proj",
    "text_projection": "text_proj",
    "itm_head": "itm_head",
    "text_encoder.embeddings.word": "text_encoder.bert.embeddings.word_embeddings",
    "text_encoder.embeddings.position": "text_encoder.bert.embeddings.position_embeddings",
    "text_encoder.embeddings.token_type": "text_encoder.bert.embeddings.token_type_embeddings",
    "text_encoder.embeddings.norm": "text_encoder.bert.embeddings.LayerNorm",
    "mlm_head.transform": "text_encoder.cls.predictions.transform.dense",
    "mlm_head.norm": "text_encoder.cls.predictions.transform.LayerNorm",
    "mlm_head.decoder": "text_encoder.cls.predictions.decoder",
}
LAYER_MODULES = {
    "self_attention.query": "attention.self.query",
    "self_attention.key": "attention.self.key",
    "self_attention.value": "attention.self.value",
    "self_attention.output": "attention.output.dense",
    "self_attention.norm": "attention.output.LayerNorm",
    "cross_attention.query": "crossattention.self.query",
    "cross_attention.key": "crossattention.self.key",
    "cross_attention.value": "crossattention.self.value",
    "cross_attention.output": "crossattention.output.dense",
    "cross_attention.norm": "crossattention.output.LayerNorm",
    "ffn.up": "intermediate.dense",
    "ffn.down": "output.dense",
    "ffn.norm": "output.LayerNorm",
}
POSITION_IDS = "text_encoder.bert.embeddings.position_ids"  # a constant 0..n-1 that older transformers saved
TIED = {  # second names the files give to one tensor -> its first name
    "text_encoder.cls.predictions.bias": "text_encoder.cls.predictions.decoder.bias",
    "text_encoder.cls.predictions.decoder.weight": "text_encoder.bert.embeddings.word_embeddings.weight",
}
WITHOUT_TEACHER = ("itm_head.", "temp")  # no momentum copy of these exists
LAYER = re.compile(r"(text|fusion)_encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")


@dataclass(frozen=True)
class Published:
    """A published ALBEF pre-training file in our names; the teacher's missing ITM head and temperature are the student's."""

    config: ModelConfig
    student: State
    teacher: State | None
    queue: dict[str, Any] | None


def published_name(ours: str, text_layers: int) -> str:
    """The published files' name of one of our student parameters; fusion layers count on after the text layers."""
    if ours == "temperature":
        return "temp"
    if ours.startswith("image_encoder."):
        return ours.replace("image_encoder.", "visual_encoder.", 1)
    if match := LAYER.fullmatch(ours):
        side, index, module, leaf = match.groups()
        number = int(index) + (text_layers if side == "fusion" else 0)
        return f"text_encoder.bert.encoder.layer.{number}.{LAYER_MODULES[module]}.{leaf}"
    module, _, leaf = ours.rpartition(".")
    return f"{MODULES[module]}.{leaf}"


def import_published(path: str, vision_heads: int | None = None, text_heads: int | None = None) -> Published:
    """Read a published pre-training file (ALBEF.pth, ALBEF_4M.pth), strictly.

    Heads leave no trace in the shapes; by default every head is 64 wide, as in the published models.

    Raises:
        DataError: unreadable, missing or unexpected keys (all of them named), another shape, tied copies that differ.
    """
    state = read_weights(path)
    config = _inferred_config(path, state, vision_heads, text_heads)
    names = {ours: published_name(ours, config.text_layers) for ours in _shapes(config)}
    teacher_names = {ours: _teacher_name(name) for ours, name in names.items() if not name.startswith(WITHOUT_TEACHER)}
    has_teacher = any(name in state for name in teacher_names.values())
    has_queue = "image_queue" in state
    expected = [*names.values(), *(name for name in TIED if name not in names.values())]
    optional = [POSITION_IDS]
    if has_teacher:
        expected += [*teacher_names.values(), *(_teacher_name(name) for name in TIED if _teacher_name(name) not in teacher_names.values())]
        optional.append(_teacher_name(POSITION_IDS))
    if has_queue:
        expected += ["image_queue", "text_queue", "queue_ptr"]
    _check_names(path, expected, [name for name in state if name not in optional])
    _check_tied(path, state, has_teacher)
    student = {ours: state[name].reshape(1) if name == "temp" else state[name] for ours, name in names.items()}
    _check_shapes(path, _shapes(config), student)
    teacher = student | {ours: state[name] for ours, name in teacher_names.items()} if has_teacher else None
    _check_shapes(path, _shapes(config), teacher or {})
    return Published(config, student, teacher, _queue_state(state) if has_queue else None)


def export_published(path: str, config: ModelConfig, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], queue: FeatureQueue) -> None:
    """Write our weights as a published pre-training file: `{"model": state}` with tied copies, `_m` teacher and column-major queues."""
    state: State = {}
    for ours, value in student.items():
        state[published_name(ours, config.text_layers)] = value.detach().cpu().reshape(()) if ours == "temperature" else value.detach().cpu()
    for ours, value in teacher.items():
        if not (name := published_name(ours, config.text_layers)).startswith(WITHOUT_TEACHER):
            state[_teacher_name(name)] = value.detach().cpu()
    for rename in (str, _teacher_name):
        state[rename(POSITION_IDS)] = torch.arange(config.max_positions)[None]
        for copy, original in TIED.items():
            state[rename(copy)] = state[rename(original)]
    state |= {"image_queue": queue.image.T.cpu().contiguous(), "text_queue": queue.text.T.cpu().contiguous(), "queue_ptr": torch.tensor([queue.position])}
    with storage.atomic_write(path) as file:
        torch.save({"model": state}, file)


def load_timm_vit(model: Albef, path_or_name: str) -> None:
    """Load the image encoder from a DeiT/timm checkpoint file or a timm model's pre-trained weights; classifier heads are left out.

    Position embeddings are resized to the model's grid.

    Raises:
        DataError: no such file or model, unreachable hub, or weights of another architecture.
    """
    state = read_weights(path_or_name) if _is_file(path_or_name) else _timm_state(path_or_name)
    state = {name: value for name, value in state.items() if not name.startswith(("head.", "head_dist.", "pre_logits."))}
    positions = state.get("pos_embed")
    if positions is not None and positions.ndim == 3 and int((positions.shape[1] - 1) ** 0.5) ** 2 == positions.shape[1] - 1:
        state["pos_embed"] = resized_positions(positions, model.config.num_patches)
    load_strictly(model.image_encoder, state, path_or_name)


def load_hf_bert(model: Albef, path_or_name: str) -> None:
    """Load text layers, fusion layers and MLM head from a BERT's successive layers; cross-attention keeps its fresh weights.

    `path_or_name` is a folder written by transformers or a model of the Hugging Face hub.

    Raises:
        DataError: no such model, unreachable hub, too few layers, or weights of another shape.
    """
    source = _hf_state(path_or_name)
    state = {}
    for ours, own in model.state_dict().items():
        name = published_name(ours, model.config.text_layers)
        if not name.startswith("text_encoder.") or "crossattention" in name:
            state[ours] = own
        elif (value := source.get(name.removeprefix("text_encoder."))) is not None:
            state[ours] = value
    load_strictly(model, state, path_or_name)


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    """`load_state_dict` that answers a misfit with one line.

    Raises:
        DataError: names every missing and unexpected key, or the first key of another shape with both shapes.
    """
    own = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    _check_names(origin, list(own), list(state))
    _check_shapes(origin, own, state)
    module.load_state_dict(dict(state))


def read_weights(path: str) -> State:
    """The tensors of a .safetensors file or of a torch file (bare, or under "model" or "state_dict"); unpickles tensors only."""
    if not Path(path).is_file():
        raise DataError(f"{path}: no such checkpoint file")
    try:
        content = load_file(path) if path.endswith(".safetensors") else torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise DataError(f"{path}: not a readable checkpoint of plain tensors ({reason})") from error
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise DataError(f"{path}: holds no named tensors; expected a state dict, bare or under 'model' or 'state_dict'")
    return content


def _teacher_name(name: str) -> str:
    root, _, rest = name.partition(".")
    return f"{root}_m.{rest}"


def _shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in Albef(config).state_dict().items()}


def _check_names(origin: str, expected: list[str], found: list[str]) -> None:
    missing, unexpected = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    parts = [f"{what} {', '.join(names)}" for what, names in (("missing", missing), ("unexpected", unexpected)) if names]
    if parts:
        raise DataError(f"{origin}: keys do not fit the model: {'; '.join(parts)}")


def _check_shapes(origin: str, expected: Mapping[str, tuple[int, ...]], found: Mapping[str, Tensor]) -> None:
    for name, value in found.items():
        if tuple(value.shape) != expected[name]:
            raise DataError(f"{origin}: {name} has shape {tuple(value.shape)}, the model's is {expected[name]}; use a checkpoint of the configured sizes")


def _check_tied(path: str, state: State, has_teacher: bool) -> None:
    for rename in (str, _teacher_name) if has_teacher else (str,):
        for copy, original in TIED.items():
            if not torch.equal(state[rename(copy)], state[rename(original)]):
                raise DataError(f"{path}: {rename(copy)} differs from {rename(original)}, but they are one tensor in the model")


def _queue_state(state: State) -> dict[str, Any]:
    return {"image": state["image_queue"].T.contiguous(), "text": state["text_queue"].T.contiguous(), "position": int(state["queue_ptr"])}


def _inferred_config(path: str, state: State, vision_heads: int | None, text_heads: int | None) -> ModelConfig:
    """Sizes read off the shapes."""

    def shape(name: str) -> tuple[int, ...]:
        if name not in state:
            raise DataError(f"{path}: no key {name}; not an ALBEF pre-training checkpoint")
        return tuple(state[name].shape)

    def count(pattern: str) -> int:
        return len({match[1] for name in state if (match := re.match(pattern, name))})

    vision_width, _, patch_size, _ = shape("visual_encoder.patch_embed.proj.weight")
    vocab_size, text_hidden = shape("text_encoder.bert.embeddings.word_embeddings.weight")
    fusion_layers = count(r"text_encoder\.bert\.encoder\.layer\.(\d+)\.crossattention\.")
    sizes = {
        "image_size": int((shape("visual_encoder.pos_embed")[1] - 1) ** 0.5) * patch_size,
        "patch_size": patch_size,
        "vision_width": vision_width,
        "vision_depth": count(r"visual_encoder\.blocks\.(\d+)\."),
        "vision_heads": vision_heads or max(1, vision_width // 64),
        "vision_mlp_ratio": shape("visual_encoder.blocks.0.mlp.fc1.weight")[0] / vision_width,
        "text_hidden": text_hidden,
        "text_heads": text_heads or max(1, text_hidden // 64),
        "text_layers": count(r"text_encoder\.bert\.encoder\.layer\.(\d+)\.") - fusion_layers,
        "fusion_layers": fusion_layers,
        "text_intermediate": shape("text_encoder.bert.encoder.layer.0.intermediate.dense.weight")[0],
        "vocab_size": vocab_size,
        "max_positions": shape("text_encoder.bert.embeddings.position_embeddings.weight")[0],
        "type_vocab_size": shape("text_encoder.bert.embeddings.token_type_embeddings.weight")[0],
        "embed_dim": shape("vision_proj.weight")[0],
    }
    return validate(ModelConfig, sizes, origin=path)


def _is_file(path_or_name: str) -> bool:
    return Path(path_or_name).suffix in (".pth", ".pt", ".bin", ".safetensors") or Path(path_or_name).is_file()


def _timm_state(name: str) -> State:
    import timm  # takes seconds to import and is needed here alone

    def load() -> State:
        state: State = timm.create_model(name, pretrained=True, num_classes=0).state_dict()
        return state

    return _from_hub(name, "a checkpoint file or a model of timm", load)


def _hf_state(name: str) -> State:
    import transformers  # takes seconds to import and is needed here alone

    def load() -> State:
        bert, info = transformers.BertForMaskedLM.from_pretrained(name, output_loading_info=True)
        state: State = bert.state_dict()
        for fresh in info["missing_keys"]:  # transformers would hand us random weights for what the files lack
            state.pop(fresh, None)
        return state

    return _from_hub(name, "a folder with a BERT or a model of the Hugging Face hub", load)


def _from_hub(name: str, expected: str, load: Callable[[], State]) -> State:
    try:
        return load()
    except Exception as error:  # the hub clients raise a dozen unrelated types for a wrong name, no network or no permission
        reason = str(error).strip().split("\n")[0][:200]
        raise DataError(f"{name}: cannot be loaded; expected {expected} ({type(error).__name__}: {reason})") from error
