"""Our parameter names and those of the published ALBEF files, for pre-training and every downstream variant, as one table to read both ways."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from training.model_config import ModelConfig

# Ours -> the files' (module names; weights and biases keep their names).
EMBEDDINGS = {
    "embeddings.word": "embeddings.word_embeddings",
    "embeddings.position": "embeddings.position_embeddings",
    "embeddings.token_type": "embeddings.token_type_embeddings",
    "embeddings.norm": "embeddings.LayerNorm",
}
TEXT_LAYER = {
    "self_attention.query": "attention.self.query",
    "self_attention.key": "attention.self.key",
    "self_attention.value": "attention.self.value",
    "self_attention.output": "attention.output.dense",
    "self_attention.norm": "attention.output.LayerNorm",
    "ffn.up": "intermediate.dense",
    "ffn.down": "output.dense",
    "ffn.norm": "output.LayerNorm",
}
CROSS_ATTENTION = {
    "cross_attention.query": "crossattention.self.query",
    "cross_attention.key": "crossattention.self.key",
    "cross_attention.value": "crossattention.self.value",
    "cross_attention.output": "crossattention.output.dense",
    "cross_attention.norm": "crossattention.output.LayerNorm",
}
FUSION_LAYER = TEXT_LAYER | CROSS_ATTENTION
LANGUAGE_HEAD = {
    "transform": "cls.predictions.transform.dense",
    "norm": "cls.predictions.transform.LayerNorm",
}
VISION_BLOCK = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
CLASSIFIER = {"classifier.hidden": "cls_head.0", "classifier.output": "cls_head.2"}  # between them a ReLU without weights
SHARED_BY_PAIRS = ("cross_attention.key", "cross_attention.value")

POSITION_IDS = "embeddings.position_ids"  # a constant 0..n-1 that older transformers saved
STUDENT, TEACHER, QUEUE = "student.", "teacher.", "queue."


@dataclass(frozen=True)
class Variant:
    """What a published file of one kind holds; every kind has an image encoder and a text encoder with fusion layers."""

    title: str
    heads: Mapping[str, str]  # ours -> theirs: linear layers that have a momentum copy
    own_heads: Mapping[str, str]  # ... and those that have none
    temperature: bool = False
    mlm_head: bool = False  # its text encoder's keys then begin with `bert.`, and `cls.` follows
    queue: tuple[str, ...] = ()  # ours; the files' names are in QUEUES
    decoder: bool = False
    paired_layers: bool = False  # fusion layers 2k and 2k+1 read two pictures through one pair of key and value projections
    teacher: bool = True
    classes: int = 0  # of its classifier


PROJECTIONS = {"image_projection": "vision_proj", "text_projection": "text_proj"}
ITM_HEAD = {"itm_head": "itm_head"}
VARIANTS = {
    "pretrain": Variant("pre-training", PROJECTIONS, ITM_HEAD, temperature=True, mlm_head=True, queue=("image", "text", "position")),
    "retrieval": Variant("retrieval or grounding", PROJECTIONS, ITM_HEAD, temperature=True, queue=("image", "text", "position", "image_ids")),
    "vqa": Variant("VQA", {}, {}, decoder=True),
    "ve": Variant("SNLI-VE", CLASSIFIER, {}, classes=3),
    "nlvr": Variant("NLVR2", CLASSIFIER, {}, paired_layers=True, classes=2),
    "ta": Variant("text assignment", {}, PROJECTIONS | {"assignment_head": "ta_head"}, temperature=True, paired_layers=True, teacher=False, classes=3),
}  # fmt: skip
QUEUES = {"image": "image_queue", "text": "text_queue", "position": "queue_ptr", "image_ids": "idx_queue"}


def key_table(variant: Variant, sizes: ModelConfig) -> dict[str, str]:
    """The keys of a file of this kind -> ours (`student.<parameter>`, `teacher.<parameter>`, `queue.<ring>`).

    Where two keys have one of ours, the file stores one tensor twice. The constant position ids are not listed: `position_id_keys` are.
    """
    table = {theirs: f"{STUDENT}{ours}" for theirs, ours in _with_momentum_copy(variant, sizes)}
    if variant.teacher:
        table |= {teacher_key(theirs): f"{TEACHER}{ours}" for theirs, ours in _with_momentum_copy(variant, sizes)}
    table |= {theirs: f"{STUDENT}{ours}" for theirs, ours in _linear(variant.own_heads)}
    if variant.temperature:
        table["temp"] = f"{STUDENT}temperature"
    return table | {QUEUES[name]: f"{QUEUE}{name}" for name in variant.queue}


def position_id_keys(variant: Variant) -> list[str]:
    """The constant position ids a file of this kind may have or not."""
    own = [f"{_text_root(variant)}{POSITION_IDS}", *([f"text_decoder.bert.{POSITION_IDS}"] if variant.decoder else [])]
    return [*own, *map(teacher_key, own)] if variant.teacher else own


def teacher_key(key: str) -> str:
    """`visual_encoder.norm.weight` -> `visual_encoder_m.norm.weight`."""
    root, _, rest = key.partition(".")
    return f"{root}_m.{rest}"


def shared_keys(variant: Variant, sizes: ModelConfig) -> list[tuple[str, str]]:
    """Pairs of keys under which a file of this kind stores what its model has once: keys and values of paired fusion layers."""
    if not variant.paired_layers:
        return []
    layers = range(sizes.text_layers, sizes.text_layers + sizes.fusion_layers, 2)
    modules = [f"encoder.layer.{{}}.{CROSS_ATTENTION[module]}.{leaf}" for module in SHARED_BY_PAIRS for leaf in ("weight", "bias")]
    pairs = [(_text_root(variant) + key.format(layer), _text_root(variant) + key.format(layer + 1)) for layer in layers for key in modules]
    return [*pairs, *((teacher_key(one), teacher_key(other)) for one, other in pairs if variant.teacher)]


def bert_table(text_layers: int, fusion_layers: int, cross_attention: bool = True) -> Iterator[tuple[str, str]]:
    """(theirs, ours) of a BERT's embeddings and layers, cut in two: fusion layers count on after the text layers."""
    yield from _embeddings("text_encoder.")
    for number in range(text_layers):
        yield from _layer(f"text_encoder.layers.{number}", number, TEXT_LAYER)
    for number in range(fusion_layers):
        yield from _layer(f"fusion_encoder.layers.{number}", text_layers + number, FUSION_LAYER if cross_attention else TEXT_LAYER)


def language_head_table(ours: str, words: str) -> Iterator[tuple[str, str]]:
    """(theirs, ours) of a BERT's masked-language head named `ours`; its decoder's weight is the word table `words`, its bias has two names."""
    yield from _linear({f"{ours}.{own}": their for own, their in LANGUAGE_HEAD.items()})
    yield "cls.predictions.bias", f"{ours}.decoder.bias"
    yield "cls.predictions.decoder.bias", f"{ours}.decoder.bias"
    yield "cls.predictions.decoder.weight", words


def _with_momentum_copy(variant: Variant, sizes: ModelConfig) -> Iterator[tuple[str, str]]:
    yield from _vision(sizes.vision_depth)
    for theirs, ours in bert_table(sizes.text_layers, sizes.fusion_layers):
        yield f"{_text_root(variant)}{theirs}", ours
    if variant.mlm_head:
        for theirs, ours in language_head_table("mlm_head", "text_encoder.embeddings.word.weight"):
            yield f"text_encoder.{theirs}", ours
    if variant.decoder:
        yield from _answer_decoder(sizes.fusion_layers)
    yield from _linear(variant.heads)


def _text_root(variant: Variant) -> str:
    return "text_encoder.bert." if variant.mlm_head else "text_encoder."


def _vision(depth: int) -> Iterator[tuple[str, str]]:
    blocks = [f"blocks.{number}.{module}" for number in range(depth) for module in VISION_BLOCK]
    linear = [f"{module}.{leaf}" for module in ("patch_embed.proj", *blocks, "norm") for leaf in ("weight", "bias")]
    for name in ("cls_token", "pos_embed", *linear):
        yield f"visual_encoder.{name}", f"image_encoder.{name}"


def _answer_decoder(layers: int) -> Iterator[tuple[str, str]]:
    """VQA's language model: as many layers as there are fusion layers, from which it starts; each also looks at the question's states."""
    for theirs, ours in _embeddings("answer_decoder."):
        yield f"text_decoder.bert.{theirs}", ours
    for number in range(layers):
        for theirs, ours in _layer(f"answer_decoder.layers.{number}", number, FUSION_LAYER):
            yield f"text_decoder.bert.{theirs}", ours
    for theirs, ours in language_head_table("answer_decoder.head", "answer_decoder.embeddings.word.weight"):
        yield f"text_decoder.{theirs}", ours


def _embeddings(root: str) -> Iterator[tuple[str, str]]:
    for ours, theirs in EMBEDDINGS.items():
        yield f"{theirs}.weight", f"{root}{ours}.weight"
    yield "embeddings.LayerNorm.bias", f"{root}embeddings.norm.bias"


def _layer(ours: str, number: int, modules: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    return _linear({f"{ours}.{own}": f"encoder.layer.{number}.{their}" for own, their in modules.items()})


def _linear(modules: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for ours, theirs in modules.items():
        for leaf in ("weight", "bias"):
            yield f"{theirs}.{leaf}", f"{ours}.{leaf}"
