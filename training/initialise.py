"""The student before step 0: random weights from the seed, then the pictures' and the words' pre-trained ones."""

import logging

import torch

from pipeline.core.errors import ConfigError
from training import weights
from training.config import TrainingConfig
from training.model import Albef
from training.tokenizer import Tokenizer

log = logging.getLogger(__name__)


def build_student(config: TrainingConfig, tokenizer: Tokenizer) -> Albef:
    """The same weights on every rank and at every restart.

    Raises ConfigError when a configured vocabulary size contradicts the tokenizer, DataError when weights do not fit.
    """
    torch.manual_seed(config.seed)
    model_config = config.model
    if config.init.tokenizer is None:
        model_config = model_config.model_copy(update={"vocab_size": tokenizer.vocab_size})  # known only now
    elif tokenizer.vocab_size > model_config.vocab_size:
        raise ConfigError(f"training.model.vocab_size {model_config.vocab_size} is less than the {tokenizer.vocab_size} word pieces of {config.init.tokenizer}")
    student = Albef(model_config)
    if config.init.vision is not None:
        weights.load_timm_vit(student, config.init.vision)
        log.info("image encoder starts from %s", config.init.vision)
    if config.init.text is not None:
        weights.load_hf_bert(student, config.init.text)
        log.info("text and fusion layers start from %s", config.init.text)
    return student
