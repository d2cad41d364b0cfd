"""Pseudo-targets against the model asked directly, word by word and text by text."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from eval.predictor import AlbefPredictor
from eval.pseudo_targets import Teacher, _place, drawn_samples, pool_of, pseudo_targets, samples_of
from pipeline.core.errors import DataError
from shards.dataset import DamagedSample, Dataset
from shards.manifest import publish
from shards.pixels.transforms import EvalTransform
from shards.writer import SampleToWrite, write_shard
from training.batch import normalised

CAPTIONS = ("A red, round moon!", "the blue star", "a green square left of the blue star", "moon right of a red star")


def write_dataset(folder: Path, captions: tuple[str, ...] = CAPTIONS, picture: bytes | None = None, others: tuple[str, ...] = ("moon",)) -> Dataset:
    rng = np.random.default_rng(0)
    rows = [
        SampleToWrite(
            f"{number:03d}", picture or cv2.imencode(".jpg", rng.integers(0, 256, (24, 36, 3), dtype=np.uint8))[1].tobytes(), "jpg", (caption, *others)
        )
        for number, caption in enumerate(captions)
    ]
    shards = [write_shard(str(folder / f"{place:05d}.tar"), rows[place::2], source="test") for place in range(2)]
    publish(str(folder), shards, outcomes={"success": len(rows)}, config={})
    return Dataset.open(str(folder))


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return write_dataset(tmp_path / "dataset")


@pytest.fixture
def teacher(make_predictor: Callable[..., AlbefPredictor]) -> Teacher:
    return Teacher("checkpoint", 1, make_predictor(state_type="float32", batch_size=2, pairs_per_batch=2), temperature=0.3)


def plain_word_probabilities(predictor: AlbefPredictor, image: bytes, pieces: list[str], places: list[int]) -> np.ndarray:
    """MLM's probabilities at the first of `places`, all of which are masked, straight through the model."""
    vocabulary = predictor.tokenizer.vocabulary()
    input_ids = torch.tensor([[predictor.tokenizer.mask_id if place in places else vocabulary.index(piece) for place, piece in enumerate(pieces)]])
    pixels = torch.from_numpy(EvalTransform(predictor.resolution)(image)).permute(2, 0, 1)[None]
    with torch.no_grad():
        image_embeds = predictor.model.encode_image(normalised(pixels))
        mask = torch.ones_like(input_ids)
        fused = predictor.model.fuse(predictor.model.encode_text(input_ids, mask), mask, image_embeds)
        probabilities: np.ndarray = predictor.model.mlm_head(fused)[0, places[0]].softmax(dim=0).numpy()
    return probabilities


def test_the_words_are_the_likeliest_of_the_model_at_the_hidden_place(teacher: Teacher, dataset: Dataset) -> None:
    sample = samples_of(dataset, ["002"])[0]
    (found,) = pseudo_targets(teacher, [sample], pool=["moon", "the star"])
    pieces = teacher.predictor.tokenizer.pieces(teacher.predictor.tokenizer.encode(["a green square left of the blue star"], 30)[0][0].tolist())
    starts = [place for place, piece in enumerate(pieces) if place and not piece.startswith("##")]
    assert [place.word for place in found.words] == ["green", "square", "left", "blue", "star"]
    for place in found.words:
        word = next(
            number for number, start in enumerate(starts) if "".join(pieces[start : [*starts, len(pieces)][number + 1]]).replace("##", "") == place.word
        )
        expected = plain_word_probabilities(teacher.predictor, sample.image, pieces, list(range(starts[word], [*starts, len(pieces)][word + 1])))
        best = np.argsort(-expected)[:5]
        assert [guess.text.removesuffix("…") for guess in place.guesses] == teacher.predictor.tokenizer.pieces(best.tolist())
        several = [*starts, len(pieces)][word + 1] - starts[word] > 1
        assert all(guess.text.endswith("…") == (guess.right and several) for guess in place.guesses)
        np.testing.assert_allclose([guess.probability for guess in place.guesses], expected[best], rtol=1e-4)
        assert f"{place.before} {place.word} {place.after}".strip() == "a green square left of the blue star"


def test_the_texts_are_the_softmax_over_the_pool_and_the_samples_own(teacher: Teacher, dataset: Dataset) -> None:
    sample = samples_of(dataset, ["000"])[0]
    pool = ["moon", "the star", "a red round moon", "green square"]
    (found,) = pseudo_targets(teacher, [sample], pool)
    image = teacher.predictor.encode_images([EvalTransform(16)(sample.image)]).features[0]
    logits = teacher.predictor.encode_texts(pool).features @ image / 0.3
    expected = np.exp(logits) / np.exp(logits).sum()
    order = np.argsort(-expected)
    assert [guess.text for guess in found.texts] == [pool[number] for number in order]
    np.testing.assert_allclose([guess.probability for guess in found.texts], expected[order], rtol=1e-5)
    assert {guess.text for guess in found.texts if guess.right} == {"moon", "a red round moon"}
    (widened,) = pseudo_targets(teacher, [sample], ["the star"])
    assert {guess.text for guess in widened.texts} == {"the star", "moon", "a red round moon"}


def test_words_asked_for_are_hidden_and_no_others(teacher: Teacher, dataset: Dataset) -> None:
    found = pseudo_targets(teacher, samples_of(dataset, ["000", "001"]), ["moon"], words=("THE", "moon"))
    assert [[place.word for place in sample.words] for sample in found] == [["moon"], ["the"]]


def test_the_same_seed_draws_the_same_samples_and_the_pool_has_no_text_twice(dataset: Dataset) -> None:
    drawn = [sample.key for sample in drawn_samples(dataset, 3, seed=5).samples]
    assert drawn == [sample.key for sample in drawn_samples(dataset, 3, seed=5).samples]
    assert len(set(drawn)) == 3
    assert len({tuple(sample.key for sample in drawn_samples(dataset, 3, seed).samples) for seed in range(8)}) > 1
    pool = pool_of(dataset, 100, seed=0)
    assert len(pool) == len(set(pool)) == 5  # four and the one they share
    assert len(pool_of(dataset, 2, seed=0)) == 2


def test_a_key_that_is_not_there_is_named(dataset: Dataset) -> None:
    with pytest.raises(DataError, match="no sample '777' among its 4"):
        samples_of(dataset, ["001", "777"])


def test_a_damaged_sample_is_named_where_it_was_chosen_and_left_out_of_the_pool(dataset: Dataset) -> None:
    path = Path(dataset.folder) / "00000.tar"
    data = bytearray(path.read_bytes())
    place = data.index(b"A red")
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedSample, match="row 0"):
        samples_of(Dataset.open(dataset.folder), ["000"])
    assert "a red round moon" not in pool_of(Dataset.open(dataset.folder), 100, seed=0)


def test_a_picture_that_does_not_decode_is_named_by_its_key(tmp_path: Path, teacher: Teacher) -> None:
    dataset = write_dataset(tmp_path / "broken", picture=b"\xff\xd8\xff\xe0 no picture")
    with pytest.raises(DataError, match=r"^001: ") as raised:
        pseudo_targets(teacher, samples_of(dataset, ["001"]), ["moon"])
    assert "\n" not in str(raised.value)


def test_drawn_samples_that_cannot_be_shown_are_replaced_and_named(tmp_path: Path, teacher: Teacher) -> None:
    dataset = write_dataset(tmp_path / "some", captions=("the moon", "...", "a red star", "blue square"), others=())
    path = Path(dataset.folder) / "00000.tar"
    data = bytearray(path.read_bytes())
    data[data.index(b"the moon")] ^= 1
    path.write_bytes(data)
    dataset = Dataset.open(dataset.folder)
    drawn = drawn_samples(dataset, 4, seed=0)
    assert {sample.key for sample in drawn.samples} == {"002", "003"}
    assert len(pseudo_targets(teacher, drawn.samples, ["moon"])) == 2
    damaged, empty = sorted(drawn.left_out, key=lambda reason: "001" in reason)
    assert "row 0" in damaged
    assert empty.startswith("001: has no caption")
    for seed in range(8):
        assert len(drawn_samples(dataset, 2, seed).samples) == 2


def test_a_dataset_of_which_nothing_can_be_shown_is_named(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "broken", picture=b"\xff\xd8\xff\xe0 no picture")
    with pytest.raises(DataError, match=r"broken: none of 4 samples drawn can be shown; the first: 00\d: "):
        drawn_samples(dataset, 2, seed=0)


def test_the_first_piece_of_a_longer_word_is_marked_as_such(teacher: Teacher) -> None:
    hidden = next(one for one in teacher.predictor.hidden_words("redred moonmoon") if one.input_ids.count(teacher.predictor.tokenizer.mask_id) > 1)
    probability = np.zeros(teacher.predictor.tokenizer.vocab_size, np.float32)
    probability[hidden.answer] = 1
    guess = _place(teacher.predictor, hidden, probability).guesses[0]
    assert guess.text == teacher.predictor.tokenizer.pieces([hidden.answer])[0] + "…"
    assert guess.right
