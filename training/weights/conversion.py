"""Published files to checkpoints of ours, and our weights to files of other programs' kinds; nothing is overwritten."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from pipeline.core import storage
from pipeline.core.errors import ConfigError, DataError
from training import checkpoint
from training.model import Albef
from training.model_config import ModelConfig
from training.tokenizer import Tokenizer
from training.weights.bert import bert_files
from training.weights.files import State, modules_of, torch_bytes, write_once
from training.weights.portable import portable_files
from training.weights.published import Published, assumed_heads, parameter_shapes, published_state
from training.weights.sources import Source, open_source
from training.weights.vit import timm_state, with_positions_resized

POSITIONS = "image_encoder.pos_embed"
FRESH_SEED = 0


@dataclass(frozen=True)
class Imported:
    """A checkpoint that came from a file, and what a reader must know about it."""

    checkpoint: checkpoint.Checkpoint
    lines: list[str]


def import_file(
    path: str,
    folder: str,
    tokenizer: Tokenizer | None = None,
    image_size: int | None = None,
    vision_heads: int | None = None,
    text_heads: int | None = None,
    image_pool: Literal["cls", "mean"] | None = None,
) -> Imported:
    """Write a published file (or an exported folder) as the first checkpoint of `folder`, for evaluation or as first weights.

    Args:
        tokenizer: whose ids the model knows; an exported folder has its own.
        image_size: side of the picture, pixels, that position embeddings are resized for; None keeps the file's.
        vision_heads, text_heads, image_pool: what no shape of a published file shows; where None, heads are 64 wide and [CLS] is projected.

    Raises:
        DataError: the file is unreadable or its keys do not fit, each of them named.
        ConfigError: the tokenizer has more or fewer word pieces than the model, `folder` holds something else, or heads for a folder that knows its own.
    """
    source = open_source(path, vision_heads, text_heads)
    unseen = {"vision_heads": vision_heads, "text_heads": text_heads, "image_pool": image_pool}
    if source.heads_known and (given := [name for name, value in unseen.items() if value is not None]):
        raise ConfigError(f"--{given[0].replace('_', '-')}: {path} says it itself; leave it out")
    source = replace(source, assumed=[] if source.heads_known else [name for name, value in unseen.items() if value is None])
    tokenizer = source.tokenizer or _fitting(tokenizer, source)
    weights = at_image_size(source.weights, image_size or source.weights.config.image_size, path)
    if image_pool is not None:
        weights = replace(weights, config=weights.config.model_copy(update={"image_pool": image_pool}))
    student = completed(weights, weights.student)
    tensors: dict[str, Mapping[str, Tensor]] = {"student": student}
    if weights.teacher is not None:
        tensors["teacher"] = student | completed(weights, weights.teacher)
    if weights.queue is not None:
        tensors["queue"] = {name: weights.queue[name] for name in ("image", "text")}
    if weights.extra:
        tensors["extra"] = weights.extra
    record = {
        "state": {"step": 0, "queue_position": weights.queue["position"] if weights.queue else 0},
        "model": weights.config.model_dump(mode="json"),
        "training": {},  # there was no run of ours
        "published": {"file": path.rstrip("/").rpartition("/")[2], "variant": weights.variant, "fresh": weights.fresh, "assumed": source.assumed},
    }
    written = checkpoint.write_first(folder, tensors, tokenizer, record)
    return Imported(written, _what_happened(source, weights))


def at_image_size(weights: Published, image_size: int, origin: str) -> Published:
    """The weights for pictures of another side, pixels: position embeddings of student and teacher resized."""
    config = weights.config.model_copy(update={"image_size": image_size})
    if image_size % config.patch_size:
        raise ConfigError(f"image size {image_size} is not a multiple of the {config.patch_size} pixels of a patch of {origin}")
    teacher = with_positions_resized(weights.teacher, POSITIONS, config.num_patches, f"{origin}, teacher") if weights.teacher is not None else None
    return replace(weights, config=config, student=with_positions_resized(weights.student, POSITIONS, config.num_patches, origin), teacher=teacher)


def _fitting(tokenizer: Tokenizer | None, source: Source) -> Tokenizer:
    if tokenizer is None:
        raise ConfigError(f"{source.path}: has no vocabulary of its own; give --tokenizer")
    if tokenizer.vocab_size != (rows := source.weights.config.vocab_size):  # also fewer: most probably every row is another word then
        raise ConfigError(f"--tokenizer: has {tokenizer.vocab_size} word pieces, but {source.path} knows {rows}; give its own vocab.txt")
    return tokenizer


def completed(weights: Published, tower: Mapping[str, Tensor]) -> State:
    """All parameters of `Albef` in fp32, each once; what the tower lacks is fresh, the same at every call."""
    names = parameter_shapes(weights.config)
    fresh: Mapping[str, Tensor] = {}
    if any(name not in tower for name in names):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(FRESH_SEED)
            fresh = Albef(weights.config).state_dict()
    return {name: (tower[name] if name in tower else fresh[name]).float() for name in names}


def export(path: str, out: str, file_format: str, tower: str | None = None) -> list[str]:
    """Write the weights at `path` in one of FORMATS; returns what was left out and what to mind, a line each.

    Args:
        path: a checkpoint folder, a folder of checkpoints, an exported folder or a published file.
        tower: `student` (when None) or `teacher`; a published file holds both.

    Raises:
        ConfigError: another file is at `out`, or `tower` for a published file.
        DataError: unreadable, or without what the format needs.
    """
    source = open_source(path)
    files, lines = FORMATS[file_format](source, out, tower)
    write_once(files)
    return lines


def _published_file(source: Source, out: str, tower: str | None) -> tuple[dict[str, bytes], list[str]]:
    if tower is not None:
        raise ConfigError(f"--tower {tower}: a published file holds student and teacher; leave --tower out")
    absent = [name for name, there in (("teacher", source.weights.teacher), ("queue", source.weights.queue)) if there is None]
    lines = [f"left out: {name}: {source.path} has none" for name in absent]
    if source.kind == "checkpoint" and source.step:  # an imported one has none
        lines.append("left out: optimizer")
    if source.weights.config.image_pool != "cls":
        lines.append(f"mind: the original code projects [CLS]; this model was trained with image_pool {source.weights.config.image_pool}")
    if options := _told_apart_by(source.weights.config):
        lines.append(f"mind: the file does not say it; to take it back: albef checkpoint import {out} OUT --tokenizer vocab.txt {options}")
    return {_file(out, (".pth", ".pt")): torch_bytes({"model": published_state(source.weights)})}, lines


def _told_apart_by(config: ModelConfig) -> str:
    """The options of an import for what is not as it would be assumed."""
    unlike = {
        "--vision-heads": (config.vision_heads, assumed_heads(config.vision_width)),
        "--text-heads": (config.text_heads, assumed_heads(config.text_hidden)),
        "--image-pool": (config.image_pool, "cls"),
    }
    return " ".join(f"{option} {own}" for option, (own, assumed) in unlike.items() if own != assumed)


def _portable(source: Source, out: str, tower: str | None) -> tuple[dict[str, bytes], list[str]]:
    if source.fresh:
        raise DataError(f"{source.path}: has no trained {', '.join(modules_of(source.fresh))}; an exported model is a whole one")
    if source.tokenizer is None:
        raise DataError(f"{source.path}: has no vocabulary; make a checkpoint of it first: albef checkpoint import {source.path} OUT --tokenizer vocab.txt")
    about = {"tower": tower or "student", "step": source.step}
    weights = {name: value.float() for name, value in _tower(source, tower).items()}
    return _in_folder(out, portable_files(weights, source.weights.config, source.tokenizer, about)), ["left out: the other tower, queue and optimizer"]


def _timm(source: Source, out: str, tower: str | None) -> tuple[dict[str, bytes], list[str]]:
    state = timm_state(_tower(source, tower))
    return {_file(out, (".pth", ".pt")): torch_bytes(state)}, ["left out: everything but the image encoder; it has no classifier: num_classes=0"]


def _bert(source: Source, out: str, tower: str | None) -> tuple[dict[str, bytes], list[str]]:
    if source.tokenizer is None:
        raise DataError(f"{source.path}: has no vocabulary; make a checkpoint of it first: albef checkpoint import {source.path} OUT --tokenizer vocab.txt")
    if any(name.startswith("mlm_head.") for name in source.fresh):
        raise DataError(f"{source.path}: has no trained masked-language head, which a BERT for masked words needs")
    files = bert_files(_tower(source, tower), source.weights.config, source.tokenizer)
    return _in_folder(out, files), ["left out: cross-attention to the picture: transformers puts it into every layer of a BERT or into none"]


FORMATS: dict[str, Callable[[Source, str, str | None], tuple[dict[str, bytes], list[str]]]] = {
    "albef": _published_file,
    "safetensors": _portable,
    "timm": _timm,
    "bert": _bert,
}


def _tower(source: Source, tower: str | None) -> State:
    if tower != "teacher":
        return source.weights.student
    if source.weights.teacher is None:
        raise DataError(f"{source.path}: has no teacher; leave --tower out")
    return source.weights.teacher


def _file(out: str, suffixes: tuple[str, ...]) -> str:
    if not out.endswith(suffixes):
        raise ConfigError(f"{out}: this format is one file; give a name that ends with {' or '.join(suffixes)}")
    return out


def _in_folder(out: str, files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {storage.join(out, name): data for name, data in files.items()}


def _what_happened(source: Source, weights: Published) -> list[str]:
    before, after = source.weights.config.image_size, weights.config.image_size
    lines = [f"{source.path}: {source.kind}"]
    lines.append("teacher: " + ("from the file" if weights.teacher is not None else "none"))
    lines.append("queue: " + (f"{len(weights.queue['image'])} features, position {weights.queue['position']}" if weights.queue else "none"))
    config = weights.config
    if not source.heads_known:
        lines.append(f"heads: {config.vision_heads}{_assumed(source, 'vision_heads')} and {config.text_heads}{_assumed(source, 'text_heads')}")
        lines.append(f"pooling: {config.image_pool}{_assumed(source, 'image_pool')}")
    if before != after:
        lines.append(f"interpolated: position embeddings, bicubic, for {after} px in place of {before}")
    if weights.fresh:
        lines.append(f"fresh: {', '.join(modules_of(weights.fresh))} ({len(weights.fresh)} tensors), which tell nothing before they are trained")
    if weights.extra:
        kept = sorted({".".join(name.split(".")[:2]) for name in weights.extra})
        lines.append(f"kept in extra.safetensors: {', '.join(kept)} ({len(weights.extra)} tensors)")
    return lines


def _assumed(source: Source, name: str) -> str:
    return f" (assumed; --{name.replace('_', '-')})" if name in source.assumed else ""
