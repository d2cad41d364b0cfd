"""What a benchmark sees of a model: pictures and texts in, features, token states and matching logits out."""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shards.pixels.decode import Picture
from shards.pixels.transforms import MEAN, STD
from shards.text_rules import pre_caption
from training.model import Albef
from training.tokenizer import Tokenizer

Indices = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Encoded:
    """Pictures or texts after their own encoder."""

    features: npt.NDArray[np.float32]  # [N, E], unit vectors
    states: npt.NDArray[np.floating[Any]]  # [N, S, W], what the fusion layers read
    lengths: npt.NDArray[np.int64]  # [N], states that count; the rest is padding

    def __len__(self) -> int:
        return len(self.features)


@dataclass(frozen=True)
class HiddenWord:
    """A caption's word pieces with one whole word replaced by [MASK]s: a piece left standing would give the rest away."""

    input_ids: tuple[int, ...]  # [CLS] first
    position: int  # of the word's first piece: what is asked for
    answer: int  # that piece's id
    word: str


class Predictor(Protocol):
    """A model ready for evaluation."""

    @property
    def resolution(self) -> int:
        """Side of the square pictures it takes, pixels."""

    @property
    def temperature(self) -> float:
        """What ITC divides its similarities by."""

    @property
    def settings(self) -> dict[str, Any]:
        """All that its numbers depend on, as JSON values: a hash of the weights, resolution, text rules, precision."""

    def encode_images(self, images: Sequence[Picture]) -> Encoded:
        """`uint8 [R, R, 3]` each, R the resolution."""

    def encode_texts(self, texts: Sequence[str]) -> Encoded:
        """Raw captions; states of every call have the same number of positions."""

    def match_logits(self, images: Encoded, texts: Encoded, image_index: Indices, text_index: Indices) -> npt.NDArray[np.float32]:
        """ITM logits `[P, 2]` (class 1: they belong together) of picture image_index[p] with text text_index[p]; fastest sorted by picture."""

    def hidden_words(self, text: str) -> list[HiddenWord]:
        """The raw caption once for each word of it, with that word hidden."""

    def word_log_probabilities(self, images: Encoded, image_index: Indices, hidden: Sequence[HiddenWord]) -> npt.NDArray[np.float32]:
        """MLM's log-probabilities `[P, vocabulary]` of what is asked for in hidden[p], beside picture image_index[p]."""


class AlbefPredictor:
    """Our model behind the protocol; states wait in host memory, only a batch of them is on the device."""

    def __init__(
        self,
        model: Albef,
        tokenizer: Tokenizer,
        resolution: int,
        *,
        device: str = "auto",
        precision: Literal["fp32", "bf16"] = "fp32",
        state_type: Literal["float16", "float32"] = "float16",
        batch_size: int = 64,
        pairs_per_batch: int = 256,
        max_words: int = 30,
        max_tokens: int = 30,
    ) -> None:
        self.device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        self.model = model.eval().to(self.device)
        self.tokenizer = tokenizer
        self.resolution = resolution
        self.temperature = float(model.temperature.detach())
        self.precision, self.state_type = precision, state_type
        self.batch_size, self.pairs_per_batch = batch_size, pairs_per_batch
        self.max_words, self.max_tokens = max_words, min(max_tokens, model.config.max_positions)

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "weights": _weights_hash(self.model),
            "vocabulary": hashlib.sha256("\n".join(self.tokenizer.vocabulary()).encode()).hexdigest()[:16],
            "resolution": self.resolution,
            "interpolation": "bicubic, whole picture to a square",
            "text_rules": f"pre_caption, {self.max_words} words, {self.max_tokens} tokens with [CLS], no [SEP]",
            "precision": self.precision,
            "state_type": self.state_type,
        }

    def encode_images(self, images: Sequence[Picture]) -> Encoded:
        mean, std = torch.tensor(MEAN, device=self.device), torch.tensor(STD, device=self.device)
        batches = []
        for start in range(0, len(images), self.batch_size):
            pixels = torch.from_numpy(np.stack(images[start : start + self.batch_size])).to(self.device)
            with self._inference():
                embeds = self.model.encode_image(((pixels / 255 - mean) / std).permute(0, 3, 1, 2).contiguous())
                features = self.model.image_feat(embeds)
            lengths = np.full(len(embeds), embeds.shape[1])
            batches.append(Encoded(features.float().cpu().numpy(), self._to_host(embeds), lengths))
        return joined(batches)

    def encode_texts(self, texts: Sequence[str]) -> Encoded:
        ready = [pre_caption(text, self.max_words) for text in texts]
        batches = []
        for start in range(0, len(ready), self.batch_size):
            input_ids, mask = self.tokenizer.encode(ready[start : start + self.batch_size], self.max_tokens)
            with self._inference():
                embeds = self.model.encode_text(input_ids.to(self.device), mask.to(self.device))
                features = self.model.text_feat(embeds)
            states = self._to_host(embeds)
            padding = ((0, 0), (0, self.max_tokens - states.shape[1]), (0, 0))
            batches.append(Encoded(features.float().cpu().numpy(), np.pad(states, padding), mask.sum(dim=1).numpy()))
        return joined(batches)

    def match_logits(self, images: Encoded, texts: Encoded, image_index: Indices, text_index: Indices) -> npt.NDArray[np.float32]:
        logits = np.empty((len(image_index), 2), dtype=np.float32)
        for start in range(0, len(image_index), self.pairs_per_batch):
            batch = slice(start, start + self.pairs_per_batch)
            logits[batch] = self._match(images, texts, image_index[batch], text_index[batch])
        return logits

    def hidden_words(self, text: str) -> list[HiddenWord]:
        input_ids = self.tokenizer.encode([pre_caption(text, self.max_words)], self.max_tokens)[0][0].tolist()
        pieces = self.tokenizer.pieces(input_ids)
        starts = [place for place, piece in enumerate(pieces) if place and not piece.startswith("##")]  # 0 is [CLS]
        return [self._hidden(input_ids, pieces, start, stop) for start, stop in pairwise([*starts, len(pieces)])]

    def _hidden(self, input_ids: list[int], pieces: list[str], start: int, stop: int) -> HiddenWord:
        masked = (*input_ids[:start], *[self.tokenizer.mask_id] * (stop - start), *input_ids[stop:])
        return HiddenWord(masked, start, input_ids[start], "".join(piece.removeprefix("##") for piece in pieces[start:stop]))

    def word_log_probabilities(self, images: Encoded, image_index: Indices, hidden: Sequence[HiddenWord]) -> npt.NDArray[np.float32]:
        parts = [
            self._words(images, image_index[start : start + self.pairs_per_batch], hidden[start : start + self.pairs_per_batch])
            for start in range(0, len(hidden), self.pairs_per_batch)
        ]
        return np.concatenate(parts)

    def _words(self, images: Encoded, image_index: Indices, hidden: Sequence[HiddenWord]) -> npt.NDArray[np.float32]:
        """One batch."""
        pictures, row_of_pair = np.unique(image_index, return_inverse=True)
        lengths = torch.tensor([len(one.input_ids) for one in hidden])
        padding = self.tokenizer.pad_id
        input_ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(one.input_ids) for one in hidden], batch_first=True, padding_value=padding).to(self.device)
        mask = (torch.arange(input_ids.shape[1]) < lengths[:, None]).long().to(self.device)
        asked = torch.tensor([one.position for one in hidden], device=self.device)
        with self._inference():
            image_embeds = torch.from_numpy(images.states[pictures]).to(self.device).float()
            embeds = self.model.encode_text(input_ids, mask)
            fused = self.model.fuse(embeds, mask, image_embeds, torch.from_numpy(row_of_pair.reshape(-1)).to(self.device))
            logits = self.model.mlm_head(fused[torch.arange(len(hidden), device=self.device), asked])
            found: npt.NDArray[np.float32] = logits.float().log_softmax(dim=1).cpu().numpy()
        return found

    def _match(self, images: Encoded, texts: Encoded, image_index: Indices, text_index: Indices) -> npt.NDArray[np.float32]:
        """One batch; a picture's states travel and are projected once, however many texts of the batch look at it."""
        pictures, row_of_pair = np.unique(image_index, return_inverse=True)
        lengths = torch.from_numpy(texts.lengths[text_index])
        longest = int(lengths.max())
        mask = (torch.arange(longest) < lengths[:, None]).long().to(self.device)
        with self._inference():
            image_embeds = torch.from_numpy(images.states[pictures]).to(self.device).float()
            text_embeds = torch.from_numpy(texts.states[text_index, :longest]).to(self.device).float()
            fused = self.model.fuse(text_embeds, mask, image_embeds, torch.from_numpy(row_of_pair.reshape(-1)).to(self.device))
            found: npt.NDArray[np.float32] = self.model.itm_head(fused[:, 0]).float().cpu().numpy()
        return found

    def _to_host(self, embeds: Tensor) -> npt.NDArray[np.floating[Any]]:
        states: npt.NDArray[np.floating[Any]] = embeds.float().cpu().numpy().astype(self.state_type)
        return states

    @contextlib.contextmanager
    def _inference(self) -> Iterator[None]:
        """No gradients, and bf16 arithmetic where asked for."""
        with torch.inference_mode(), torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            yield


def joined(parts: Sequence[Encoded]) -> Encoded:
    """One behind the other."""
    return Encoded(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("features", "states", "lengths")))


def _weights_hash(model: Albef) -> str:
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
