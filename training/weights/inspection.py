"""What is this file or folder of weights? Its kind, sizes, parameters by tower, and what a run could still do with it."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from pipeline.core import storage
from pipeline.core.errors import DataError
from training import checkpoint
from training.model_config import ModelConfig
from training.weights import zero_folders
from training.weights.bert import check_bert, is_bert
from training.weights.files import SUFFIXES, State, check_finite, check_names, check_shapes, is_weights_file, read_weights
from training.weights.names import POSITION_IDS, VARIANTS
from training.weights.portable import MODEL_TYPE, model_settings, read_exported
from training.weights.published import Published, published_from, variant_of
from training.weights.vit import HEADS, encoder_shapes, is_timm_vit

NAMES_SHOWN = 3
KINDS = "a checkpoint of ours, a published ALBEF file, a DeepSpeed checkpoint of such a model, a timm ViT, a Hugging Face BERT, or a model that albef exported"


@dataclass(frozen=True)
class Inspected:
    """What `albef checkpoint inspect` shows."""

    path: str
    kind: str
    parameters: dict[str, int]  # by tower or module, tied ones once
    model: dict[str, Any] | None = None  # the sizes, where they are all known
    holds: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        """The same for people."""
        shown = [f"{self.path}: {self.kind}"]
        if self.model is not None:
            shown.append(f"    model        {_in_words(self.model)}")
        shown += [f"    {name:<12} {value}" for name, value in self.holds.items()]
        shown += [f"    {count:>13,} {name}" for name, count in sorted(self.parameters.items(), key=lambda entry: -entry[1])]
        return [*shown, f"    {sum(self.parameters.values()):>13,} parameters"]


def inspect(path: str, vision_heads: int | None = None, text_heads: int | None = None) -> Inspected:
    """Look at weights on disk or s3://; every byte is read, and checksums are compared where there are some.

    Raises:
        DataError: nothing there, damaged, or of a kind we do not know.
    """
    if is_weights_file(path):
        return _of_file(path, read_weights(path), vision_heads, text_heads)
    if zero_folders.folder_of(path):
        return _of_file(path, zero_folders.read(path), vision_heads, text_heads, "DeepSpeed checkpoint")
    if checkpoint.folder_of(path):
        return _of_checkpoint(path)
    if storage.exists(storage.join(path, "config.json")):
        return _of_exported(path) if model_settings(path).get("model_type") == MODEL_TYPE else _of_bert_folder(path)
    raise DataError(f"{path}: neither a folder of weights (no latest, manifest.json or config.json) nor a file ({', '.join(SUFFIXES)}); expected {KINDS}")


def _of_file(path: str, state: State, vision_heads: int | None, text_heads: int | None, wrapping: str = "published ALBEF file") -> Inspected:
    check_finite(path, state)
    if variant_of(state):
        published = published_from(state, path, vision_heads, text_heads)
        title = VARIANTS[published.variant].title
        return _of_published(path, f"{wrapping}, {title}, {len(state)} tensors", published)
    if is_timm_vit(state):
        return _of_vit(path, state)
    if is_bert(state):
        return Inspected(path, f"weights of a Hugging Face BERT, {len(state)} tensors; give its folder to training.init.text", _by_root(state))
    if "image_encoder.pos_embed" in state:
        return Inspected(path, f"one tower in our names, {len(state)} tensors; give the folder it lies in", _by_root(state))
    named = ", ".join(sorted(state)[:NAMES_SHOWN])
    raise DataError(f"{path}: {len(state)} tensors ({named}, ...) of an unknown model; expected {KINDS}")


def _of_published(path: str, kind: str, weights: Published) -> Inspected:
    extra = {name.partition(".")[2]: value for name, value in weights.extra.items() if name.startswith("student.")}
    holds: dict[str, Any] = _temperature(weights.student) | {
        "teacher": "yes" if weights.teacher is not None else "no",
        "queue": f"{len(weights.queue['image'])} features, position {weights.queue['position']}" if weights.queue else "no",
        "heads": f"{weights.config.vision_heads} and {weights.config.text_heads}, as given or 64 wide: the shapes do not tell",
    }
    return Inspected(path, kind, _by_root({**weights.student, **extra}), weights.config.model_dump(mode="json"), holds)


def _of_checkpoint(path: str) -> Inspected:
    found = checkpoint.read(path)
    found.verify()
    student = found.tensors("student")
    check_finite(storage.join(found.path, "student.safetensors"), student)
    check_finite(storage.join(found.path, "teacher.safetensors"), found.tensors("teacher") if found.has("teacher") else {})
    holds: dict[str, Any] = {"step": found.step} | _temperature(student)
    holds |= {"teacher": "yes" if found.has("teacher") else "no"}
    holds |= {"queue": f"{len(found.tensors('queue')['image'])} features" if found.has("queue") else "no"}
    holds |= {"optimizer": "yes" if found.has("optimizer") else "no: a run cannot go on from it, but start from it (training.init.checkpoint)"}
    if found.published:
        holds |= {"imported": f"{found.published['file']}, {VARIANTS[found.published['variant']].title}"}
    if found.fresh:
        holds |= {"fresh": f"{len(found.fresh)} tensors that were not in that file"}
    siblings = [name for name in storage.list_folders(checkpoint.folder_of(path) or path) if name.startswith("step-")]
    kind = "checkpoint of ours" + (f", the newest of {len(siblings)}" if siblings else "") + ", all checksums right"
    return Inspected(found.path, kind, _by_root(student), found.model_config.model_dump(mode="json"), holds)


def _of_exported(path: str) -> Inspected:
    exported = read_exported(path)
    check_finite(storage.join(path, "model.safetensors"), exported.weights)
    holds = {**exported.about, "vocabulary": f"{exported.tokenizer.vocab_size} word pieces"} | _temperature(exported.weights)
    return Inspected(path, "model that albef exported", _by_root(exported.weights), exported.config.model_dump(mode="json"), holds)


def _of_vit(path: str, state: State) -> Inspected:
    if (embedding := state["patch_embed.proj.weight"]).ndim != 4:
        raise DataError(f"{path}: patch_embed.proj.weight has shape {tuple(embedding.shape)}, expected 4 dimensions; not a ViT")
    width, _, patch, _ = embedding.shape
    blocks = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    grid = math.isqrt(max(1, state["pos_embed"].shape[1] - 1)) if "pos_embed" in state and state["pos_embed"].ndim == 3 else 1
    hidden = state["blocks.0.mlp.fc1.weight"].shape[0] if "blocks.0.mlp.fc1.weight" in state else 4 * width
    encoder = {name: value for name, value in state.items() if not name.startswith(HEADS)}
    shapes = encoder_shapes(
        ModelConfig(image_size=grid * patch, patch_size=patch, vision_width=width, vision_depth=max(1, blocks), vision_heads=1, vision_mlp_ratio=hidden / width)
    )
    check_names(path, shapes, encoder)
    check_shapes(path, shapes, encoder)
    holds = {
        "blocks": f"{blocks} of width {width}, patches of {patch} px, {grid} x {grid} positions ({grid * patch} px)",
        "classifier": "yes, which is left out" if any(name.startswith(HEADS) for name in state) else "no",
    }
    return Inspected(path, f"timm ViT, {len(state)} tensors; for training.init.vision", {"image encoder": _count(state)}, holds=holds)


def _of_bert_folder(path: str) -> Inspected:
    settings = model_settings(path)
    if settings.get("model_type") != "bert":
        raise DataError(f"{path}/config.json: model_type is {settings.get('model_type')!r}; expected {KINDS}")
    names = [name for name in ("model.safetensors", "pytorch_model.bin") if storage.exists(storage.join(path, name))]
    if not names:
        raise DataError(f"{path}: a BERT's config.json, but neither model.safetensors nor pytorch_model.bin")
    state = {name: value for name, value in read_weights(storage.join(path, names[0])).items() if not name.endswith(POSITION_IDS)}
    check_finite(storage.join(path, names[0]), state)
    check_bert(storage.join(path, names[0]), state, settings)
    shown = ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size", "max_position_embeddings")
    holds: dict[str, Any] = {"sizes": ", ".join(f"{name} {settings.get(name)}" for name in shown)}
    holds |= {"MLM head": "yes" if any(name.startswith("cls.predictions.transform") for name in state) else "no: ours would start fresh"}
    holds |= {"vocab.txt": "yes" if storage.exists(storage.join(path, "vocab.txt")) else "no"}
    return Inspected(path, "Hugging Face BERT; for training.init.text", _by_root(state), holds=holds)


def _temperature(student: Mapping[str, Tensor]) -> dict[str, float]:
    return {"temperature": round(float(student["temperature"]), 6)} if "temperature" in student else {}


def _by_root(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Parameters by the first part of their names; the second name of a tied one does not count."""
    counts: dict[str, int] = {}
    seen: set[int] = set()
    for name, value in state.items():
        root = name.partition(".")[0]
        counts[root] = counts.get(root, 0) + (0 if value.data_ptr() in seen else value.numel())
        seen.add(value.data_ptr())
    return counts


def _count(state: Mapping[str, Tensor]) -> int:
    return sum(value.numel() for value in state.values())


def _in_words(model: Mapping[str, Any]) -> str:
    config = ModelConfig.model_validate(model)
    return (
        f"pictures {config.image_size} px, {config.vision_depth} blocks of width {config.vision_width}; {config.text_layers} text and {config.fusion_layers} "
        f"fusion layers of width {config.text_hidden}; {config.vocab_size} word pieces; features of {config.embed_dim}"
    )
