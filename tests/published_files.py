"""Published ALBEF files of every kind at any size: keys and shapes as the original's models have them, written down key by key."""

from dataclasses import dataclass

import torch

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Sizes:
    """The defaults are the published ones."""

    width: int = 768  # of pictures and texts
    blocks: int = 12
    patch: int = 16
    grid: int = 16
    text_layers: int = 6
    fusion_layers: int = 6
    vocabulary: int = 30522
    positions: int = 512
    features: int = 256
    queue: int = 65536


TINY = Sizes(width=16, blocks=2, patch=8, grid=2, text_layers=2, fusion_layers=2, vocabulary=40, positions=12, features=8, queue=6)
KINDS = {"pretrain": 844, "retrieval": 831, "vqa": 1154, "ve": 824, "nlvr": 1136, "ta": 571}  # entries at the published sizes


def shapes(kind: str, s: Sizes) -> Shapes:
    """Key -> shape of a published file of this kind."""
    fusion_layers = 2 * s.fusion_layers if kind in ("nlvr", "ta") else s.fusion_layers
    with_copy = _vit(s)
    if kind == "pretrain":
        with_copy |= _bert("text_encoder.bert.", s, s.text_layers, fusion_layers) | _language_head("text_encoder.cls.", s)
    else:
        with_copy |= _bert("text_encoder.", s, s.text_layers, fusion_layers)
    if kind == "vqa":
        with_copy |= _bert("text_decoder.bert.", s, 0, s.fusion_layers) | _language_head("text_decoder.cls.", s)
    if kind in ("pretrain", "retrieval", "ta"):
        with_copy |= _linear("vision_proj", s.features, s.width) | _linear("text_proj", s.features, s.width)
    if kind in ("ve", "nlvr"):
        with_copy |= _linear("cls_head.0", s.width, s.width) | _linear("cls_head.2", 3 if kind == "ve" else 2, s.width)
    alone: Shapes = {}
    if kind in ("pretrain", "retrieval", "ta"):
        alone["temp"] = ()
    if kind in ("pretrain", "retrieval"):
        alone |= _linear("itm_head", 2, s.width)
        alone |= {"image_queue": (s.features, s.queue), "text_queue": (s.features, s.queue), "queue_ptr": (1,)}
    if kind == "retrieval":
        alone["idx_queue"] = (1, s.queue)
    if kind == "ta":
        return with_copy | alone | _linear("ta_head", 3, s.width)
    return with_copy | alone | {key.replace(root := key.split(".")[0], f"{root}_m", 1): shape for key, shape in with_copy.items()}


def tensors(kind: str, s: Sizes = TINY, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights for these keys; what the model has once is the same under all its keys."""
    generator = torch.Generator().manual_seed(seed)
    state = {key: torch.randn(shape, generator=generator) for key, shape in shapes(kind, s).items()}
    for key in state:
        if key.endswith("position_ids"):
            state[key] = torch.arange(s.positions)[None]
        if key.endswith("cls.predictions.decoder.weight"):
            state[key] = state[key.replace("cls.predictions.decoder", "bert.embeddings.word_embeddings")]
        if key.endswith("cls.predictions.decoder.bias"):
            state[key] = state[key.replace("decoder.bias", "bias")]
        layer = int(key.split(".layer.")[1].split(".")[0]) if ".layer." in key else 0
        if kind in ("nlvr", "ta") and ("crossattention.self.key" in key or "crossattention.self.value" in key) and (layer - s.text_layers) % 2:
            state[key] = state[key.replace(f".layer.{layer}.", f".layer.{layer - 1}.")]
    if "queue_ptr" in state:
        state["queue_ptr"] = torch.tensor([4])
    if "idx_queue" in state:
        state["idx_queue"] = torch.arange(s.queue)[None] - 100
    return state


def _vit(s: Sizes) -> Shapes:
    found: Shapes = {"visual_encoder.cls_token": (1, 1, s.width), "visual_encoder.pos_embed": (1, 1 + s.grid**2, s.width)}
    found |= {"visual_encoder.patch_embed.proj.weight": (s.width, 3, s.patch, s.patch), "visual_encoder.patch_embed.proj.bias": (s.width,)}
    for block in (f"visual_encoder.blocks.{number}." for number in range(s.blocks)):
        found |= _norm(f"{block}norm1", s) | _linear(f"{block}attn.qkv", 3 * s.width, s.width) | _linear(f"{block}attn.proj", s.width, s.width)
        found |= _norm(f"{block}norm2", s) | _linear(f"{block}mlp.fc1", 4 * s.width, s.width) | _linear(f"{block}mlp.fc2", s.width, 4 * s.width)
    return found | _norm("visual_encoder.norm", s)


def _bert(root: str, s: Sizes, plain_layers: int, crossed_layers: int) -> Shapes:
    words: Shapes = {f"{root}embeddings.position_ids": (1, s.positions), f"{root}embeddings.word_embeddings.weight": (s.vocabulary, s.width)}
    words |= {f"{root}embeddings.position_embeddings.weight": (s.positions, s.width), f"{root}embeddings.token_type_embeddings.weight": (2, s.width)}
    words |= _norm(f"{root}embeddings.LayerNorm", s)
    for number in range(plain_layers + crossed_layers):
        layer = f"{root}encoder.layer.{number}."
        for attention in ["attention"] if number < plain_layers else ["attention", "crossattention"]:
            for part in ("self.query", "self.key", "self.value", "output.dense"):
                words |= _linear(f"{layer}{attention}.{part}", s.width, s.width)
            words |= _norm(f"{layer}{attention}.output.LayerNorm", s)
        words |= _linear(f"{layer}intermediate.dense", 4 * s.width, s.width) | _linear(f"{layer}output.dense", s.width, 4 * s.width)
        words |= _norm(f"{layer}output.LayerNorm", s)
    return words


def _language_head(root: str, s: Sizes) -> Shapes:
    head: Shapes = {f"{root}predictions.bias": (s.vocabulary,)}
    head |= _linear(f"{root}predictions.transform.dense", s.width, s.width) | _norm(f"{root}predictions.transform.LayerNorm", s)
    return head | _linear(f"{root}predictions.decoder", s.vocabulary, s.width)


def _linear(name: str, rows: int, columns: int) -> Shapes:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def _norm(name: str, s: Sizes) -> Shapes:
    return {f"{name}.weight": (s.width,), f"{name}.bias": (s.width,)}
