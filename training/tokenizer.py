"""WordPiece as bert-base-uncased does it, with [CLS] in front and no [SEP] at the end."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from pathlib import Path

import torch
from jaxtyping import Int
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.trainers import WordPieceTrainer
from torch import Tensor

from pipeline.core import storage
from pipeline.core.errors import DataError

PAD, UNKNOWN, CLS, SEP, MASK = SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class Tokenizer:
    """Lower-cases, strips accents, splits at punctuation, then into word pieces of `vocabulary` (row number = id)."""

    def __init__(self, vocabulary: Sequence[str]) -> None:
        ids = {piece: number for number, piece in enumerate(vocabulary)}
        if absent := [name for name in SPECIAL if name not in ids]:
            raise DataError(f"vocabulary of {len(ids)} word pieces lacks {', '.join(absent)}; expected a vocab.txt like bert-base-uncased's")
        self._vocabulary = list(vocabulary)
        self._fast = _fast_tokenizer(WordPiece(ids, unk_token=UNKNOWN, max_input_chars_per_word=100))
        self.pad_id, self.cls_id, self.sep_id, self.mask_id = (ids[name] for name in (PAD, CLS, SEP, MASK))

    @property
    def vocab_size(self) -> int:
        return len(self._vocabulary)

    def encode(self, texts: Sequence[str], max_length: int) -> tuple[Int[Tensor, "b l"], Int[Tensor, "b l"]]:
        """`(input_ids, attention_mask)`, int64; [CLS] counts towards `max_length`; padded to the longest of `texts`."""
        rows = [[self.cls_id, *encoding.ids[: max_length - 1]] for encoding in self._fast.encode_batch(list(texts), add_special_tokens=False)]
        longest = max((len(row) for row in rows), default=1)
        input_ids = torch.full((len(rows), longest), self.pad_id)
        attention_mask = torch.zeros(len(rows), longest, dtype=torch.long)
        for number, row in enumerate(rows):
            input_ids[number, : len(row)] = torch.tensor(row)
            attention_mask[number, : len(row)] = 1
        return input_ids, attention_mask

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """The word pieces of these ids."""
        return [self._vocabulary[number] for number in ids]

    def vocabulary(self) -> list[str]:
        """All word pieces in the order of their ids."""
        return list(self._vocabulary)

    def vocabulary_file(self) -> bytes:
        """The content of vocab.txt: one word piece a line."""
        return "".join(f"{piece}\n" for piece in self._vocabulary).encode()

    @classmethod
    def load(cls, path: str) -> "Tokenizer":
        """From a vocab.txt (a path or URL), a local folder that holds one, or a BERT of the Hugging Face hub.

        Raises:
            DataError: nothing there, unreachable, or not a vocabulary.
        """
        if Path(path).is_dir():
            path = str(Path(path) / "vocab.txt")
        data = storage.read_bytes(path) if path.endswith(".txt") or Path(path).is_file() else _hub_vocabulary(path)
        try:
            return cls(data.decode().rstrip("\n").split("\n"))
        except (UnicodeDecodeError, DataError) as error:
            raise DataError(f"{path}: not a vocabulary: {error}") from error


def train_vocabulary(captions: Iterable[str], size: int) -> Tokenizer:
    """Learn at most `size` word pieces, the five special ones included; the same captions give the same vocabulary."""
    learner = _fast_tokenizer(WordPiece(unk_token=UNKNOWN))
    words = Counter(word for caption in captions for word in _words(learner, caption))
    # The trainer numbers "##x" pieces in the order of a randomly seeded hash map, and numbers break its ties; given as special pieces, their order is ours.
    inner_letters = sorted({f"##{letter}" for word in words for letter in word[1:]})
    trainer = WordPieceTrainer(vocab_size=size, special_tokens=[*SPECIAL, *inner_letters], show_progress=False)
    learner.train_from_iterator((" ".join(repeat(word, count)) for word, count in sorted(words.items())), trainer)
    ids: dict[str, int] = learner.get_vocab()
    return Tokenizer(sorted(ids, key=ids.__getitem__)[: max(size, len(SPECIAL))])


def _words(learner: FastTokenizer, caption: str) -> Iterator[str]:
    for word, _ in learner.pre_tokenizer.pre_tokenize_str(learner.normalizer.normalize_str(caption)):
        yield word


def _fast_tokenizer(model: WordPiece) -> FastTokenizer:
    fast = FastTokenizer(model)
    fast.normalizer = BertNormalizer(lowercase=True)
    fast.pre_tokenizer = BertPreTokenizer()
    return fast


def _hub_vocabulary(name: str) -> bytes:
    from huggingface_hub import hf_hub_download  # takes a second to import and is needed here alone

    try:
        return Path(hf_hub_download(name, "vocab.txt")).read_bytes()
    except Exception as error:  # the hub client raises a dozen unrelated types for a wrong name, no network or no permission
        reason = str(error).strip().split("\n")[0][:200]
        raise DataError(f"{name}: no vocabulary; expected a vocab.txt, a folder with one, or a BERT of the Hugging Face hub ({reason})") from error
