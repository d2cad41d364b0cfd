"""The models before step 0: random weights from the seed, then pre-trained ones of the pictures' and the words' side, or of a whole model."""

import logging

import torch

from pipeline.core.errors import ConfigError, DataError
from training.config import TrainingConfig
from training.feature_queue import FeatureQueue
from training.model import Albef
from training.model_config import ModelConfig
from training.teacher import Teacher
from training.tokenizer import Tokenizer
from training.weights.bert import load_hf_bert
from training.weights.conversion import at_image_size
from training.weights.files import load_strictly, modules_of
from training.weights.portable import with_tied
from training.weights.sources import Source, open_source
from training.weights.vit import load_timm_vit

log = logging.getLogger(__name__)
UNSEEN_SIZES = ("vision_heads", "text_heads", "image_pool")  # no shape shows them, and yet they change every number
SEEN_SIZES = (
    "patch_size", "vision_width", "vision_depth", "text_hidden", "text_layers", "fusion_layers", "text_intermediate", "vocab_size", "max_positions",
    "type_vocab_size", "embed_dim",
)  # fmt: skip


def open_first_weights(config: TrainingConfig) -> Source | None:
    """What training.init.checkpoint names, None without it: gigabytes, to be read once and let go after use.

    Raises DataError, with that key, for anything that is no weights of a whole model.
    """
    if config.init.checkpoint is None:
        return None
    try:
        return open_source(config.init.checkpoint)
    except DataError as error:
        raise type(error)(f"training.init.checkpoint: {error}") from error


def build_student(config: TrainingConfig, tokenizer: Tokenizer, source: Source | None = None) -> Albef:
    """The same weights on every rank and at every start.

    Args:
        source: first weights of the whole model, in place of the configured ones of its two sides.

    Raises ConfigError when a configured size contradicts the tokenizer or the source, DataError when weights do not fit.
    """
    torch.manual_seed(config.seed)
    student = Albef(_sizes(config, tokenizer, source))
    if source is not None:
        _load_student(student, source)
        return student
    if config.init.vision is not None:
        load_timm_vit(student, config.init.vision)
        log.info("image encoder starts from %s", config.init.vision)
    if config.init.text is not None:
        load_hf_bert(student, config.init.text)
        log.info("text and fusion layers start from %s", config.init.text)
    return student


def load_teacher_and_queue(source: Source, config: ModelConfig, teacher: Teacher, queue: FeatureQueue) -> None:
    """The source's trained teacher (where it has none, the teacher stays the student's copy) and its queue where the size fits."""
    weights = at_image_size(source.weights, config.image_size, source.path)
    if weights.teacher is not None:
        trained = {name: value for name, value in weights.teacher.items() if name not in source.fresh}
        teacher.load(trained)
        log.info("teacher starts from %s", source.path)
    if weights.queue is None:
        return
    if weights.queue["image"].shape == queue.image.shape:
        queue.load_state_dict({name: weights.queue[name] for name in ("image", "text", "position")})  # its ids are numbers of another dataset's pictures
        log.info("queue starts from %s", source.path)
    else:
        log.info("queue starts at random: %s has %d features, this run keeps %d", source.path, len(weights.queue["image"]), queue.size)


def _sizes(config: TrainingConfig, tokenizer: Tokenizer, source: Source | None) -> ModelConfig:
    """The configured sizes, with a vocabulary size that is known only now."""
    if config.init.tokenizer is None:
        return config.model.model_copy(update={"vocab_size": source.weights.config.vocab_size if source else tokenizer.vocab_size})
    if tokenizer.vocab_size > config.model.vocab_size:
        raise ConfigError(f"training.model.vocab_size {config.model.vocab_size} is less than the {tokenizer.vocab_size} word pieces of {config.init.tokenizer}")
    return config.model


def _load_student(student: Albef, source: Source) -> None:
    _check_sizes(student.config, source)
    weights = at_image_size(source.weights, student.config.image_size, source.path)
    fresh = {name: value for name, value in student.state_dict().items() if name in source.fresh}
    load_strictly(student, with_tied(weights.student | fresh), source.path)
    log.info("the model starts from %s (%s)", source.path, source.kind)
    if fresh:
        log.warning("%s has no trained %s: they start fresh", source.path, ", ".join(modules_of(fresh)))


def _check_sizes(wanted: ModelConfig, source: Source) -> None:
    """Raises ConfigError for the first size that is not the source's: one setting says more than the names and shapes of all tensors it changes."""
    found = source.weights.config
    sizes = SEEN_SIZES if "image_projection.weight" not in source.fresh else SEEN_SIZES[:-1]  # without the projections embed_dim is free to choose
    for name in (*sizes, *(UNSEEN_SIZES if source.heads_known else ())):
        if getattr(found, name) != getattr(wanted, name):
            what = "was assumed at import to have" if name in source.assumed else "was trained with"
            raise ConfigError(
                f"training.model.{name} is {getattr(wanted, name)!r}, but training.init.checkpoint {source.path} {what} {getattr(found, name)!r}; "
                "set it to that, or start from other weights"
            )
