"""Our tokenizer against transformers' BertTokenizer, and vocabularies trained from captions."""

from pathlib import Path

import pytest
import torch
from transformers import BertTokenizer

from pipeline.core.errors import DataError
from training.tokenizer import SPECIAL, Tokenizer, train_vocabulary

CAPTIONS = [
    "a small red circle left of a large blue square",
    "two striped triangles on a green background",
    "the photo shows a dotted hexagon, above a star",
    "a red star and a blue star",
] * 5
HARD = [
    "A Red CIRCLE!",
    "naïve café-goers' blue-striped w/ triangles",
    "unseen zebra words",
    "",
    "a" * 150,
    "star [SEP] star",
    "日本 star",
    "tab\tand  spaces\n",
]


def test_ids_equal_those_of_transformers_without_its_sep(tmp_path: Path) -> None:
    tokenizer = train_vocabulary(CAPTIONS, 120)
    (tmp_path / "vocab.txt").write_bytes(tokenizer.vocabulary_file())
    theirs = BertTokenizer(str(tmp_path / "vocab.txt"))
    ours, mask = tokenizer.encode(CAPTIONS + [text for text in HARD if "[" not in text], max_length=512)
    for row, kept, text in zip(ours, mask, CAPTIONS + [text for text in HARD if "[" not in text], strict=True):
        expected = theirs(text)["input_ids"][:-1]
        assert row[kept.bool()].tolist() == expected, text


def test_cls_counts_towards_max_length_and_padding_goes_to_the_longest() -> None:
    tokenizer = train_vocabulary(CAPTIONS, 200)
    ids, mask = tokenizer.encode(["a red star and a blue star", "a star"], max_length=5)
    assert ids.dtype == mask.dtype == torch.int64
    assert ids.shape == (2, 5)
    assert ids[:, 0].tolist() == [tokenizer.cls_id] * 2
    assert mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert ids[1, 3:].tolist() == [tokenizer.pad_id] * 2
    assert tokenizer.pieces(ids[0].tolist()) == ["[CLS]", "a", "red", "star", "and"]


def test_an_empty_caption_is_cls_alone() -> None:
    ids, mask = train_vocabulary(CAPTIONS, 100).encode([""], max_length=25)
    assert (ids.shape, mask.tolist()) == ((1, 1), [[1]])


def test_a_trained_vocabulary_has_the_asked_size_and_is_the_same_every_time() -> None:
    first = train_vocabulary(CAPTIONS, 90)
    for _ in range(5):  # the library's own training differs from call to call
        assert train_vocabulary(CAPTIONS, 90).vocabulary() == first.vocabulary()
    assert first.vocab_size == 90
    assert first.vocabulary()[:5] == list(SPECIAL)


def test_a_vocabulary_survives_saving_as_file_or_folder(tmp_path: Path) -> None:
    tokenizer = train_vocabulary(CAPTIONS, 120)
    (tmp_path / "vocab.txt").write_bytes(tokenizer.vocabulary_file())
    for place in (tmp_path, tmp_path / "vocab.txt"):
        loaded = Tokenizer.load(str(place))
        assert loaded.vocabulary() == tokenizer.vocabulary()
        assert (loaded.cls_id, loaded.mask_id) == (tokenizer.cls_id, tokenizer.mask_id)


def test_special_ids_are_found_by_name_wherever_they_stand() -> None:
    tokenizer = Tokenizer(["star", "[MASK]", "[CLS]", "[UNK]", "[SEP]", "[PAD]"])
    assert (tokenizer.mask_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id) == (1, 2, 4, 5)
    assert tokenizer.encode(["star unknown"], 9)[0].tolist() == [[2, 0, 3]]


def test_a_file_that_is_no_vocabulary_is_named_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("hello\nworld\n")
    with pytest.raises(DataError, match=r"vocab\.txt: not a vocabulary: .*lacks \[PAD\]") as caught:
        Tokenizer.load(str(tmp_path))
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="not found"):
        Tokenizer.load(str(tmp_path / "elsewhere" / "vocab.txt"))
