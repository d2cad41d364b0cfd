"""Useful floating-point operations of a training step, a pair: matrix products alone, a multiply-add counted as two, nothing for what could be left out.

Over a group that ranks share, these are a pair's in the mean over ranks: how many of ITM's drawn pictures a single rank holds differs from step to step.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from training.batch import Batch
from training.model_config import ModelConfig

Count = int | float
FORWARD_AND_BACKWARD = 3  # of a product both of whose factors need a gradient


@dataclass(frozen=True)
class Texts:
    """Lengths of a batch's texts in tokens, as means over its pairs; and what is seen of its pictures."""

    tokens: Count  # of a text
    predicted: Count  # of these that MLM predicts
    drawn_tokens: Count  # of ITM's drawn texts: where they keep their padding, that counts too
    kept_patches: int | None = None  # of a picture that the student sees under patch dropout; None is all


@dataclass(frozen=True)
class Objectives:
    """Which losses there are, and where the teacher's soft targets have weight."""

    itc: bool = True
    itm: bool = True
    mlm: bool = True
    hard_negatives: bool = True
    itc_soft_targets: bool = True
    mlm_soft_targets: bool = True


class _Row(NamedTuple):
    """A text beside a picture in the fusion layers: tokens computed in all layers but the last, and in the last."""

    tokens: Count
    last: Count


Parts = dict[str, Count]  # FLOPs of a pair by part, "student/fusion", forward and backward together; the sum is the step's


def texts_of(batches: Sequence[Batch]) -> Texts:
    """Real tokens of batches on the host; as the trainer's step is meant to be measured, padding of drawn texts is not counted."""
    pairs = sum(len(batch) for batch in batches)
    tokens = sum(int(batch.attention_mask.sum()) for batch in batches) / pairs
    predicted = sum(len(batch.mlm_positions) for batch in batches) / pairs
    kept = batches[0].kept_patches
    return Texts(tokens, predicted, drawn_tokens=tokens, kept_patches=None if kept is None else kept.shape[1])


def objectives_of(losses: Mapping[str, Any], alpha: float, step: int) -> Objectives | None:
    """Of losses by name at an optimizer step; None when one of them is unknown here, as its passes are then not counted."""
    if set(losses) - {"itc", "itm", "mlm"}:
        return None
    itc, itm, mlm = (losses.get(name) for name in ("itc", "itm", "mlm"))
    return Objectives(
        itc=itc is not None,
        itm=itm is not None,
        mlm=mlm is not None,
        hard_negatives=itm is not None and itm.hard_from_step is not None and step >= itm.hard_from_step,
        itc_soft_targets=itc is not None and itc.soft_targets and alpha > 0,
        mlm_soft_targets=mlm is not None and mlm.soft_targets and alpha > 0,
    )


def fused_step(config: ModelConfig, texts: Texts, group_size: int, queue_size: int, objectives: Objectives = Objectives()) -> Parts:
    """One image pass, one text pass over clean and masked texts, one fusion pass over all rows, for the student and, without a backward pass, the teacher.

    A picture's keys and values are projected once a layer; last layers compute only states that are read; the word head sees predicted tokens alone.
    """
    o, tokens = objectives, texts.tokens
    rows = [_Row(tokens, 1), _Row(tokens, 1), _Row(texts.drawn_tokens, 1)] * o.itm + [_Row(tokens, texts.predicted)] * o.mlm
    features = o.itc or (o.itm and o.hard_negatives)
    projected = FORWARD_AND_BACKWARD if o.itc else 1  # hard negatives are drawn without a gradient
    read_of_clean = tokens if o.itm else 1  # ITC alone reads [CLS]
    seen = config.num_patches if texts.kept_patches is None else texts.kept_patches
    student = {
        "vision": FORWARD_AND_BACKWARD * vision(config, seen) - _patches(config),  # pictures need no gradient
        "text": FORWARD_AND_BACKWARD * ((o.itc or o.itm) * _text(config, tokens, read_of_clean) + o.mlm * _text(config, tokens, tokens)),
        "fusion": FORWARD_AND_BACKWARD * _fusion(config, rows, seen),
        "heads": FORWARD_AND_BACKWARD * (3 * o.itm * _matching(config) + o.mlm * _words(config, texts.predicted)) + features * projected * _projections(config),
    }
    distilled = [_Row(tokens, texts.predicted)] if o.mlm_soft_targets else []
    teacher = {
        "vision": vision(config, config.num_patches) if features or distilled else 0.0,
        "text": features * _text(config, tokens, last=1) + bool(distilled) * _text(config, tokens, tokens),
        "fusion": _fusion(config, distilled, config.num_patches),
        "heads": features * _projections(config) + bool(distilled) * _words(config, texts.predicted),
    }
    keys = 2 * (1 + o.itc_soft_targets) * 2 * (group_size + queue_size)  # two directions: similarities and the mean key under them, of student and teacher
    similarities = {"similarities": 2.0 * config.embed_dim * (o.itc * keys + (o.itm and o.hard_negatives) * 2 * group_size)}
    return _named(student, teacher) | similarities


def plain_step(config: ModelConfig, texts: Texts, group_size: int, queue_size: int) -> Parts:
    """The original's passes: each pair of text and picture by itself with keys and values of its own, all states everywhere, the word head on all tokens."""
    tokens, rows = texts.tokens, [_Row(texts.tokens, texts.tokens)]
    fused_pair = _fusion(config, rows, config.num_patches)
    student = {
        "vision": FORWARD_AND_BACKWARD * vision(config, config.num_patches) - _patches(config),
        "text": FORWARD_AND_BACKWARD * 2 * _text(config, tokens, tokens),
        "fusion": FORWARD_AND_BACKWARD * 4 * fused_pair,
        "heads": FORWARD_AND_BACKWARD * (_projections(config) + 3 * _matching(config) + _words(config, tokens)),
    }
    teacher = {
        "vision": vision(config, config.num_patches),
        "text": 2 * _text(config, tokens, tokens),
        "fusion": fused_pair,
        "heads": _projections(config) + _words(config, tokens),
    }
    keys = 2 * (2 + 1) * (group_size + queue_size)  # two directions: similarities of student and teacher, and the gradient of the student's
    return _named(student, teacher) | {"similarities": 2.0 * config.embed_dim * keys}


def vision(config: ModelConfig, patches: int) -> Count:
    """The image encoder's forward pass over one picture: all patches are projected, `patches` of them go through the blocks."""
    tokens, width = 1 + patches, config.vision_width
    hidden = int(width * config.vision_mlp_ratio)
    block = 2 * tokens * width * (4 * width + 2 * hidden) + 4 * tokens**2 * width
    return _patches(config) + config.vision_depth * float(block)


def _patches(config: ModelConfig) -> Count:
    return 2.0 * config.num_patches * 3 * config.patch_size**2 * config.vision_width


def _text(config: ModelConfig, tokens: Count, last: Count) -> Count:
    """The text layers over one text, whose last layer computes `last` of the tokens."""
    return (config.text_layers - 1) * _text_layer(config, tokens, tokens) + _text_layer(config, last, tokens)


def _fusion(config: ModelConfig, rows: Sequence[_Row], patches: int) -> Count:
    """The fusion layers over the rows of one picture, whose keys and values are projected once a layer; nothing where there are no rows."""
    picture = 1 + patches
    below = sum(_fusion_layer(config, row.tokens, row.tokens, picture) for row in rows)
    last = sum(_fusion_layer(config, row.last, row.tokens, picture) for row in rows)
    projected = 4 * picture * config.vision_width * config.text_hidden
    return (config.fusion_layers - 1) * below + last + bool(rows) * config.fusion_layers * projected


def _text_layer(config: ModelConfig, queries: Count, tokens: Count) -> Count:
    """Query and output, key and value, their attention, and the feed-forward part."""
    width = config.text_hidden
    return 4 * width * (queries * width + tokens * width + queries * tokens + queries * config.text_intermediate)


def _fusion_layer(config: ModelConfig, queries: Count, tokens: Count, picture: int) -> Count:
    """The same and cross-attention, but for the picture's keys and values."""
    width = config.text_hidden
    return _text_layer(config, queries, tokens) + 4 * width * queries * (width + picture)


def _projections(config: ModelConfig) -> Count:
    return 2.0 * config.embed_dim * (config.vision_width + config.text_hidden)


def _matching(config: ModelConfig) -> Count:
    return 2.0 * config.text_hidden * 2


def _words(config: ModelConfig, tokens: Count) -> Count:
    return 2.0 * tokens * config.text_hidden * (config.text_hidden + config.vocab_size)


def _named(student: Parts, teacher: Parts) -> Parts:
    return {f"student/{part}": flops for part, flops in student.items()} | {f"teacher/{part}": flops for part, flops in teacher.items()}
