"""Published ALBEF files, pre-training and downstream, in our names and back; strict: every key is accounted for."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pipeline.core.config import validate
from pipeline.core.errors import DataError
from training.model import Albef
from training.model_config import HEAD_WIDTH, ModelConfig
from training.weights.files import State, check_names, read_weights
from training.weights.names import QUEUE, STUDENT, TEACHER, VARIANTS, Variant, key_table, position_id_keys, shared_keys

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Published:
    """What a published ALBEF file holds, in our names. A teacher's ITM head and temperature, which have no momentum copy, are the student's."""

    config: ModelConfig
    student: State  # of the parameters of `Albef` those that the file has; all of them in a pre-training file
    teacher: State | None
    queue: dict[str, Any] | None  # as FeatureQueue.load_state_dict takes it
    variant: str = "pretrain"
    extra: State = field(default_factory=dict)  # what `Albef` has no place for: `student.classifier.hidden.weight`, `queue.image_ids`, ...

    @property
    def fresh(self) -> list[str]:
        """Parameters of `Albef` that the file does not have."""
        return [name for name in parameter_shapes(self.config) if name not in self.student]


def import_published(path: str, vision_heads: int | None = None, text_heads: int | None = None) -> Published:
    """Read a published file (ALBEF.pth, mscoco.pth, vqa.pth, ...), strictly. Without its teacher or its queue it is accepted, too.

    Heads leave no trace in the shapes; by default every head is 64 wide, as in the published models.

    Raises:
        DataError: unreadable, missing or unexpected keys (all of them named), another shape, copies of one tensor that differ.
    """
    return published_from(read_weights(path), path, vision_heads, text_heads)


def published_from(state: State, path: str, vision_heads: int | None = None, text_heads: int | None = None) -> Published:
    """`import_published` of tensors that were read from `path`."""
    kind = variant_of(state)
    if kind is None:
        raise DataError(f"{path}: no keys of an image encoder and a text encoder (visual_encoder.*, text_encoder.*); not a published ALBEF checkpoint")
    variant, config = VARIANTS[kind], _inferred_config(path, state, vision_heads, text_heads)
    table = _without_absent(key_table(variant, config), state)
    constant = position_id_keys(variant)
    check_names(path, table, [name for name in state if name not in constant])
    _check_shapes(path, table, _shapes(variant, config), state)
    _check_copies(path, variant, config, table, state)
    _check_position_ids(path, [name for name in constant if name in state], state, config.max_positions)
    return _sorted_out(config, kind, {ours: state[theirs] for theirs, ours in reversed(table.items())})


def published_state(weights: Published) -> State:
    """The tensors of a published file of the kind the weights came from: both names of shared ones, `_m` teacher, column-major queues.

    Raises:
        DataError: a tensor that such a file has is not there, or two of ours differ that the file's model has once.
    """
    variant, ours = VARIANTS[weights.variant], _gathered(weights)
    table = key_table(variant, weights.config)
    table = _without_absent(table, [theirs for theirs, name in table.items() if name in ours])
    if missing := sorted({name for name in table.values() if name not in ours}):
        raise DataError(f"a published {variant.title} file has more than these weights: missing {', '.join(missing)}")
    state = {theirs: ours[name].detach().cpu() for theirs, name in table.items()}
    if "temp" in state:
        state["temp"] = state["temp"].reshape(())
    _check_copies("these weights", variant, weights.config, table, state)
    with_teacher = weights.teacher is not None
    ids = [name for name in position_id_keys(variant) if with_teacher or "_m." not in name]
    return state | {name: torch.arange(weights.config.max_positions)[None] for name in ids}


def variant_of(state: Mapping[str, Tensor]) -> str | None:
    """The kind of published file these keys are of, judged by what only it has; None for anything else."""
    roots = {name.partition(".")[0] for name in state}
    if not {"visual_encoder", "text_encoder"} <= roots:
        return None
    if "text_decoder" in roots:
        return "vqa"
    if "ta_head" in roots:
        return "ta"
    if "cls_head" in roots:
        output = state.get("cls_head.2.bias")
        return "nlvr" if output is not None and output.numel() == VARIANTS["nlvr"].classes else "ve"
    return "pretrain" if any(name.startswith("text_encoder.bert.") for name in state) else "retrieval"


def assumed_heads(width: int) -> int:
    """What a file that does not say it most probably has: heads as wide as in the published models."""
    return max(1, width // HEAD_WIDTH)


def parameter_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Of every parameter of `Albef`, each tied one once, without building it."""
    with torch.device("meta"):
        return {name: tuple(parameter.shape) for name, parameter in Albef(config).named_parameters()}


def _sorted_out(config: ModelConfig, kind: str, ours: State) -> Published:
    if "student.temperature" in ours:
        ours["student.temperature"] = ours["student.temperature"].reshape(1)
    own = parameter_shapes(config)
    student = {name: ours.pop(f"{STUDENT}{name}") for name in own if f"{STUDENT}{name}" in ours}
    has_teacher = any(name.startswith(TEACHER) for name in ours)
    teacher = {name: ours.pop(f"{TEACHER}{name}", value) for name, value in student.items()}
    rings = {name: ours.pop(f"{QUEUE}{name}", None) for name in ("image", "text", "position")}
    queue = None
    if rings["position"] is not None and rings["image"] is not None and rings["text"] is not None:
        queue = {"image": rings["image"].T.contiguous(), "text": rings["text"].T.contiguous(), "position": int(rings["position"])}
    return Published(config, _with_tied(student), _with_tied(teacher) if has_teacher else None, queue, kind, ours)


def _with_tied(state: State) -> State:
    """With the second name that `Albef` gives its word table, when it has its MLM head."""
    return state | {"mlm_head.decoder.weight": state["text_encoder.embeddings.word.weight"]} if "mlm_head.decoder.bias" in state else state


def _gathered(weights: Published) -> State:
    """All tensors under the names that `key_table` knows them by."""
    ours = {f"{STUDENT}{name}": value for name, value in weights.student.items()} | weights.extra
    ours |= {f"{TEACHER}{name}": value for name, value in (weights.teacher or {}).items()}
    if weights.queue is not None:
        ours |= {f"{QUEUE}{name}": weights.queue[name].T.contiguous() for name in ("image", "text")}
        ours[f"{QUEUE}position"] = torch.tensor([int(weights.queue["position"])])
    return ours


def _without_absent(table: dict[str, str], found: Collection[str]) -> dict[str, str]:
    """A file may lack its teacher or its queue, but only as a whole (refcoco.pth does)."""
    absent = [prefix for prefix in (TEACHER, QUEUE) if not any(theirs in found for theirs, ours in table.items() if ours.startswith(prefix))]
    return {theirs: ours for theirs, ours in table.items() if not ours.startswith(tuple(absent))}


def _shapes(variant: Variant, config: ModelConfig) -> dict[str, Shape]:
    """Of everything of ours a file of this kind can have, rings apart; without the prefix `student.` or `teacher.`."""
    width, shapes = config.text_hidden, parameter_shapes(config)
    over_text = parameter_shapes(config.model_copy(update={"vision_width": width, "vision_heads": config.text_heads}))  # VQA's decoder looks at text states
    like = {"answer_decoder.embeddings.": "text_encoder.embeddings.", "answer_decoder.layers.": "fusion_encoder.layers.", "answer_decoder.head.": "mlm_head."}
    decoder = {name.replace(own, decoders): shape for decoders, own in like.items() for name, shape in over_text.items() if name.startswith(own)}
    heads = {"classifier.hidden": (width, width), "classifier.output": (variant.classes, width), "assignment_head": (variant.classes, width)}
    return shapes | decoder | {f"{head}.weight": shape for head, shape in heads.items()} | {f"{head}.bias": shape[:1] for head, shape in heads.items()}


def _check_shapes(path: str, table: Mapping[str, str], shapes: Mapping[str, Shape], state: State) -> None:
    for theirs, ours in table.items():
        found = tuple(state[theirs].shape)
        expected = _ring_shape(theirs, shapes, state) if ours.startswith(QUEUE) else shapes[ours.partition(".")[2]]
        if found != expected and not (theirs == "temp" and found == ()):
            raise DataError(f"{path}: {theirs} has shape {found}, the model's is {expected}; use a checkpoint of the configured sizes")


def _ring_shape(theirs: str, shapes: Mapping[str, Shape], state: State) -> Shape:
    if theirs == "queue_ptr":
        return (1,)
    rows = state["image_queue"].shape[-1] if state["image_queue"].ndim else 0
    return (1 if theirs == "idx_queue" else shapes["image_projection.bias"][0], rows)


def _check_copies(path: str, variant: Variant, config: ModelConfig, table: Mapping[str, str], state: State) -> None:
    first: dict[str, str] = {}
    copies = [(first.setdefault(ours, theirs), theirs) for theirs, ours in table.items()]
    for one, other in [*copies, *shared_keys(variant, config)]:
        if one in state and one != other and not torch.equal(state[one], state[other]):
            raise DataError(f"{path}: {other} differs from {one}, but they are one tensor in the model")


def _check_position_ids(path: str, names: list[str], state: State, positions: int) -> None:
    for name in names:
        if not torch.equal(state[name].long(), torch.arange(positions)[None]):
            raise DataError(f"{path}: {name} is not 0 to {positions - 1} in order; not a checkpoint of ALBEF")


def _inferred_config(path: str, state: State, vision_heads: int | None, text_heads: int | None) -> ModelConfig:
    """Sizes read off the shapes."""
    root = "text_encoder.bert." if any(name.startswith("text_encoder.bert.") for name in state) else "text_encoder."

    def shape(name: str, dimensions: int) -> Shape:
        if name not in state:
            raise DataError(f"{path}: no key {name}; not a published ALBEF checkpoint")
        if state[name].ndim != dimensions:
            raise DataError(f"{path}: {name} has shape {tuple(state[name].shape)}, expected {dimensions} dimensions; not a published ALBEF checkpoint")
        return tuple(state[name].shape)

    def count(pattern: str) -> int:
        return len({match[1] for name in state if (match := re.match(pattern, name))})

    vision_width, _, patch_size, _ = shape("visual_encoder.patch_embed.proj.weight", 4)
    vocab_size, text_hidden = shape(f"{root}embeddings.word_embeddings.weight", 2)
    fusion_layers = count(rf"{re.escape(root)}encoder\.layer\.(\d+)\.crossattention\.")
    sizes = {
        "image_size": int((shape("visual_encoder.pos_embed", 3)[1] - 1) ** 0.5) * patch_size,
        "patch_size": patch_size,
        "vision_width": vision_width,
        "vision_depth": count(r"visual_encoder\.blocks\.(\d+)\."),
        "vision_heads": vision_heads or assumed_heads(vision_width),
        "vision_mlp_ratio": shape("visual_encoder.blocks.0.mlp.fc1.weight", 2)[0] / vision_width,
        "text_hidden": text_hidden,
        "text_heads": text_heads or assumed_heads(text_hidden),
        "text_layers": count(rf"{re.escape(root)}encoder\.layer\.(\d+)\.") - fusion_layers,
        "fusion_layers": fusion_layers,
        "text_intermediate": shape(f"{root}encoder.layer.0.intermediate.dense.weight", 2)[0],
        "vocab_size": vocab_size,
        "max_positions": shape(f"{root}embeddings.position_embeddings.weight", 2)[0],
        "type_vocab_size": shape(f"{root}embeddings.token_type_embeddings.weight", 2)[0],
        **({"embed_dim": shape("vision_proj.weight", 2)[0]} if "vision_proj.weight" in state else {}),
    }
    return validate(ModelConfig, sizes, origin=path)
