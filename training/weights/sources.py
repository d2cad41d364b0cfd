"""Anything that holds weights of the whole model, opened the same way: our checkpoint, our safetensors export, a published ALBEF file, DeepSpeed's folder."""

from dataclasses import dataclass, field

from pipeline.core import storage
from pipeline.core.errors import DataError
from training import checkpoint
from training.tokenizer import Tokenizer
from training.weights import zero_folders
from training.weights.files import SUFFIXES, is_weights_file
from training.weights.portable import read_exported
from training.weights.published import Published, import_published, published_from


@dataclass(frozen=True)
class Source:
    """Weights in our names, with what is known about them."""

    path: str
    kind: str  # a few words for people
    weights: Published
    tokenizer: Tokenizer | None  # a published file has none
    step: int | None
    heads_known: bool  # a published file does not say how many heads its attention has
    fresh: list[str]  # parameters that hold, or lack, no trained value
    assumed: list[str] = field(default_factory=list)  # sizes of the configuration that no shape shows and that nobody gave


def open_source(path: str, vision_heads: int | None = None, text_heads: int | None = None) -> Source:
    """Read weights from a checkpoint folder, a folder of checkpoints, a run directory, an exported folder, a published file or DeepSpeed's folder, on disk or s3://.

    Raises:
        DataError: nothing of these, or damaged.
    """
    if is_weights_file(path):
        published = import_published(path, vision_heads, text_heads)
        return Source(path, f"published {published.variant} file", published, None, None, heads_known=False, fresh=published.fresh)
    if zero_folders.folder_of(path):
        published = published_from(zero_folders.read(path), path, vision_heads, text_heads)
        return Source(path, f"DeepSpeed checkpoint, {published.variant}", published, None, None, heads_known=False, fresh=published.fresh)
    if checkpoint.folder_of(path):
        return _of_checkpoint(checkpoint.read(path))
    if storage.exists(storage.join(path, "config.json")):
        exported = read_exported(path)
        weights = Published(exported.config, exported.weights, None, None)
        return Source(path, f"exported {exported.about.get('tower')}", weights, exported.tokenizer, exported.about.get("step"), heads_known=True, fresh=[])
    raise DataError(
        f"{path}: no weights here; expected a checkpoint folder, a folder that albef exported, DeepSpeed's, or a published file ({', '.join(SUFFIXES)})"
    )


def _of_checkpoint(found: checkpoint.Checkpoint) -> Source:
    weights = Published(
        config=found.model_config,
        student=found.tensors("student"),
        teacher=found.tensors("teacher") if found.has("teacher") else None,
        queue={**found.tensors("queue"), "position": found.state["queue_position"]} if found.has("queue") else None,
        variant=found.published.get("variant", "pretrain"),
        extra=found.tensors("extra") if found.has("extra") else {},
    )
    return Source(
        found.path, "checkpoint", weights, found.tokenizer(), found.step, heads_known=True, fresh=found.fresh, assumed=found.published.get("assumed", [])
    )
