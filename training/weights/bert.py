"""The text side from and to Hugging Face BERTs; their layers are cut in two, and have no cross-attention."""

import json
import logging
from collections.abc import Mapping
from typing import Any

import safetensors.torch
from torch import Tensor

from pipeline.core.errors import DataError
from training.model import Albef
from training.model_config import ModelConfig
from training.text import NORM_EPS
from training.tokenizer import Tokenizer
from training.weights.files import State, check_names, check_shapes, load_strictly
from training.weights.hub import from_hub
from training.weights.names import bert_table, language_head_table
from training.weights.published import parameter_shapes

log = logging.getLogger(__name__)
WORDS = "text_encoder.embeddings.word.weight"


def load_hf_bert(model: Albef, path_or_name: str) -> None:
    """Load text layers, fusion layers and MLM head from a BERT's successive layers; cross-attention keeps its fresh weights.

    `path_or_name` is a folder written by transformers or a model of the Hugging Face hub. Of a BERT without a masked-language head ours
    keeps its fresh weights, too, which the log says; half a head is refused.

    Raises:
        DataError: no such model, unreachable hub, too few layers, weights of another shape, another number of heads or activation.
    """
    source, settings = _hf_state(path_or_name)
    _check_settings(path_or_name, settings, model.config)
    if (left_out := settings["num_hidden_layers"] - model.config.text_layers - model.config.fusion_layers) > 0:
        log.warning(
            "%s: its upper %d layers are left out; training.model has %d + %d", path_or_name, left_out, model.config.text_layers, model.config.fusion_layers
        )
    table = _table(model.config)
    if not any(theirs.startswith("cls.") for theirs in source):
        log.warning("%s has no masked-language head: ours starts fresh, on its word embeddings", path_or_name)
        table = {theirs: ours for theirs, ours in table.items() if not theirs.startswith("cls.")}
    from_bert = set(table.values())
    state = {ours: own for ours, own in model.state_dict().items() if ours not in from_bert}
    state |= {ours: source[theirs] for theirs, ours in table.items() if theirs in source}
    if WORDS in state:
        state["mlm_head.decoder.weight"] = state[WORDS]
    load_strictly(model, state, path_or_name)


def bert_files(weights: Mapping[str, Tensor], config: ModelConfig, tokenizer: Tokenizer) -> dict[str, bytes]:
    """A folder that BertForMaskedLM.from_pretrained and BertTokenizer.from_pretrained take: text layers, fusion layers, MLM head, vocabulary.

    Cross-attention is left out: transformers puts it into every layer of a BERT or into none.
    """
    names = {ours: theirs for theirs, ours in reversed(_table(config).items()) if ours != WORDS} | {WORDS: "bert.embeddings.word_embeddings.weight"}
    state = {theirs: weights[ours].detach().contiguous().clone() for ours, theirs in names.items()}
    return {
        "vocab.txt": tokenizer.vocabulary_file(),
        "tokenizer_config.json": _json({"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": config.max_positions}),
        "model.safetensors": safetensors.torch.save(state, metadata={"format": "pt"}),
        "config.json": _json({"architectures": ["BertForMaskedLM"], "model_type": "bert", **_settings(config)}),
    }


def check_bert(path: str, state: Mapping[str, Tensor], settings: Mapping[str, Any]) -> None:
    """Compare a BERT's tensors with its config.json; pooler and next-sentence head, which ours has not, are not looked at.

    Raises:
        DataError: names every missing tensor, or the first one of another shape with both shapes.
    """
    root = "bert." if any(name.startswith("bert.") for name in state) else ""
    found = {_modern(name.removeprefix(root)): value for name, value in state.items()}
    try:
        shapes = _bert_shapes(settings, with_head=any(name.startswith("cls.predictions.transform.") for name in found))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: its config.json does not give the sizes of a BERT ({error})") from error
    check_names(path, shapes, [name for name in found if name in shapes])
    check_shapes(path, shapes, {name: value for name, value in found.items() if name in shapes})


def _modern(name: str) -> str:
    """bert-base-uncased's file still has the names that TensorFlow gave its norms."""
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def _bert_shapes(settings: Mapping[str, Any], with_head: bool) -> dict[str, tuple[int, ...]]:
    """Names as BertModel has them -> shapes; of the masked-language head what is not tied."""
    layers, width = int(settings["num_hidden_layers"]), int(settings["hidden_size"])
    config = ModelConfig(
        text_hidden=width, text_heads=1, text_layers=max(1, layers), fusion_layers=1, text_intermediate=settings["intermediate_size"],
        vocab_size=settings["vocab_size"], max_positions=settings["max_position_embeddings"], type_vocab_size=settings.get("type_vocab_size", 2),
    )  # fmt: skip
    ours = parameter_shapes(config)
    table = dict(bert_table(layers, 0, cross_attention=False))
    if with_head:
        table |= {theirs: own for theirs, own in language_head_table("mlm_head", WORDS) if theirs.startswith("cls.predictions.transform.")}
    return {theirs: ours[own] for theirs, own in table.items()}


def is_bert(state: Mapping[str, Tensor]) -> bool:
    return any(f"{root}embeddings.word_embeddings.weight" in state for root in ("", "bert."))


def _table(config: ModelConfig) -> dict[str, str]:
    """The names that BertForMaskedLM gives -> ours; of the two names of the decoder's bias the second."""
    layers = {f"bert.{theirs}": ours for theirs, ours in bert_table(config.text_layers, config.fusion_layers, cross_attention=False)}
    return layers | dict(language_head_table("mlm_head", WORDS))


def _settings(config: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.text_hidden,
        "num_hidden_layers": config.text_layers + config.fusion_layers,
        "num_attention_heads": config.text_heads,
        "intermediate_size": config.text_intermediate,
        "max_position_embeddings": config.max_positions,
        "type_vocab_size": config.type_vocab_size,
        "hidden_dropout_prob": config.hidden_dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        "initializer_range": config.init_std,
        "hidden_act": "gelu",
        "layer_norm_eps": NORM_EPS,
        "tie_word_embeddings": True,
    }


def _check_settings(origin: str, theirs: Mapping[str, Any], config: ModelConfig) -> None:
    """What the shapes do not show and yet changes every number."""
    for key, ours in (("num_attention_heads", config.text_heads), ("hidden_act", "gelu"), ("layer_norm_eps", NORM_EPS)):
        if theirs[key] != ours:
            way_out = f"; set training.model.text_heads to {theirs[key]}" if key == "num_attention_heads" else "; take another BERT"
            raise DataError(f"{origin}: its {key} is {theirs[key]}, the model's is {ours}{way_out}")


def _hf_state(name: str) -> tuple[State, dict[str, Any]]:
    import transformers  # takes seconds to import and is needed here alone

    transformers.utils.logging.disable_progress_bar()  # hundreds of lines in a log file

    def load() -> tuple[State, dict[str, Any]]:
        bert, info = transformers.BertForMaskedLM.from_pretrained(name, output_loading_info=True)
        state: State = bert.state_dict()
        for fresh in info["missing_keys"]:  # transformers would hand us random weights for what the files lack
            state.pop(fresh, None)
        if not any(theirs.startswith("cls.predictions.transform") for theirs in state):  # what is left is tied to the words, or zero
            state = {theirs: value for theirs, value in state.items() if not theirs.startswith("cls.")}
        return state, bert.config.to_dict()

    return from_hub(name, "a folder with a BERT or a model of the Hugging Face hub", load)


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1) + "\n").encode()
