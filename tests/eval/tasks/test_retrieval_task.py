"""Retrieval as a whole, against a plain double loop over the pairs."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from eval.chunks import Progress
from eval.predictor import AlbefPredictor
from eval.tasks.retrieval import Retrieval
from eval.tasks.retrieval.matching import PRIOR_ENTROPY, draw_pairs, matching_metrics
from eval.tasks.retrieval.rerank import Reranked
from pipeline.core.errors import ConfigError, DataError


def plain_hits(order: np.ndarray, right: np.ndarray, k: int) -> float:
    """Share of queries, in percent, with a right answer among the first k of their order."""
    return 100 * float(np.mean([row_right[row[:k]].any() for row, row_right in zip(order, right, strict=True)]))


def plain_rerank(similarity: np.ndarray, match: np.ndarray, k: int) -> np.ndarray:
    """Per row: the k most similar by descending match score, then the rest by similarity."""
    orders = []
    for row, scores in zip(similarity, match, strict=True):
        order = np.argsort(-row)
        orders.append([*sorted(order[:k], key=lambda column, scores=scores: -scores[column]), *order[k:]])
    return np.array(orders)


@pytest.mark.parametrize("rerank_score", ["itm", "itm+itc"])
@pytest.mark.parametrize("k_test", [4, 12, 1000])
def test_the_scores_equal_a_plain_ranking_of_all_pairs(
    benchmark_on_disk, make_predictor: Callable[..., AlbefPredictor], k_test: int, rerank_score: str
) -> None:
    task = Retrieval(str(benchmark_on_disk.annotations), str(benchmark_on_disk.pictures), k_test=k_test, rerank_score=rerank_score, pairs_per_save=7)
    predictor = make_predictor()
    scores = task(predictor, Progress())
    split = task.images()
    image_of_text = np.repeat(np.arange(len(split)), [len(image.captions) for image in split])
    images, texts = task._encoded(split, [caption for image in split for caption in image.captions], predictor, Progress())
    similarity = images.features @ texts.features.T
    pairs = np.indices(similarity.shape).reshape(2, -1)
    match = predictor.match_logits(images, texts, *pairs)[:, 1].reshape(similarity.shape)
    if rerank_score == "itm+itc":
        match = match + similarity
    right = image_of_text == np.arange(len(split))[:, None]
    for k in (1, 5, 10):
        assert scores.metrics[f"itc/text_recall@{k}"] == pytest.approx(plain_hits(np.argsort(-similarity), right, k))
        assert scores.metrics[f"itc/image_recall@{k}"] == pytest.approx(plain_hits(np.argsort(-similarity.T), right.T, k))
        assert scores.metrics[f"reranked/text_recall@{k}"] == pytest.approx(plain_hits(plain_rerank(similarity, match, k_test), right, k))
        assert scores.metrics[f"reranked/image_recall@{k}"] == pytest.approx(plain_hits(plain_rerank(similarity.T, match.T, k_test), right.T, k))
    assert scores.counts["images"] == 12
    assert scores.counts["captions"] == len(image_of_text) == 33
    assert scores.counts["pairs_reranked"] <= similarity.size


def test_ranking_by_itm_alone_takes_every_pair_of_the_first_pictures_and_their_first_captions(
    benchmark_on_disk, make_predictor: Callable[..., AlbefPredictor]
) -> None:
    task = Retrieval(str(benchmark_on_disk.annotations), str(benchmark_on_disk.pictures), k_test=0, itm_loss_pairs=0, gallery=0, itm_ranking_pictures=7)
    predictor = make_predictor()
    scores = task(predictor, Progress())
    shown = task.images()[:7]
    images, texts = task._encoded(shown, [image.captions[0] for image in shown], predictor, Progress())
    match = predictor.match_logits(images, texts, *np.indices((7, 7)).reshape(2, -1))[:, 1].reshape(7, 7)
    assert scores.counts["itm_ranking_pictures"] == 7
    for k in (1, 5):
        assert scores.metrics[f"itm/text_recall@{k}"] == pytest.approx(plain_hits(np.argsort(-match), np.eye(7, dtype=bool), k))
        assert scores.metrics[f"itm/image_recall@{k}"] == pytest.approx(plain_hits(np.argsort(-match.T), np.eye(7, dtype=bool), k))


def test_re_ranking_can_lift_the_right_answer_and_ties_still_count_against_it() -> None:
    found = Reranked(candidates=np.array([[3, 1, 2], [0, 1, 2], [4, 5, 6]]), scores=np.array([[0.1, 0.9, 0.5], [0.5, 0.5, 0.1], [1.0, 2.0, 3.0]]))
    own = np.array([[False, True, False], [True, False, False], [False, False, False]])
    assert found.ranks(own, first_ranks=np.array([1, 0, 17])).tolist() == [0, 1, 17]
    assert found.best(0, 2).tolist() == [1, 2]


def test_captions_per_image_keeps_the_first_ones(benchmark_on_disk, predictor: AlbefPredictor) -> None:
    task = Retrieval(str(benchmark_on_disk.annotations), str(benchmark_on_disk.pictures), captions_per_image=2, k_test=0, itm_loss_pairs=0, gallery=0)
    scores = task(predictor, Progress())
    assert scores.counts == {"images": 12, "captions": 21}
    assert scores.gallery is None
    assert not any(name.startswith(("reranked", "itm")) for name in scores.metrics)


def test_the_itm_loss_has_one_positive_to_two_negatives_of_other_images_and_the_same_draws_each_time() -> None:
    rng = np.random.default_rng(0)
    image_of_text = np.repeat(np.arange(90), 2)
    similarity = rng.normal(size=(90, 180))
    pairs = draw_pairs(similarity, image_of_text, temperature=0.5, limit=150)
    again = draw_pairs(similarity, image_of_text, temperature=0.5, limit=150)
    assert len(pairs.matches) == 450
    assert pairs.matches.sum() == 150
    np.testing.assert_array_equal(image_of_text[pairs.text_index] == pairs.image_index, pairs.matches == 1)
    np.testing.assert_array_equal(pairs.text_index, again.text_index)
    assert len(set(pairs.text_index[:150])) == 150  # no positive twice
    drawn = similarity[pairs.image_index[150:], pairs.text_index[150:]]
    assert drawn.mean() > similarity.mean() + 1  # hard ones


def test_a_model_that_knows_only_the_prior_has_the_loss_of_its_entropy() -> None:
    matches = np.array([1, 0, 0] * 10)
    metrics = matching_metrics(np.tile([math.log(2 / 3), math.log(1 / 3)], (30, 1)), matches)
    assert metrics["itm_loss"] == pytest.approx(PRIOR_ENTROPY) == pytest.approx(0.6365, abs=1e-4)
    sure = matching_metrics(np.where(matches[:, None] == [0, 1], 20.0, -20.0), matches)
    assert sure["itm_loss"] < 1e-6
    assert sure["itm_accuracy"] == 100


def test_the_gallery_marks_the_right_answers(benchmark_on_disk, predictor: AlbefPredictor) -> None:
    scores = Retrieval(str(benchmark_on_disk.annotations), str(benchmark_on_disk.pictures), gallery=3)(predictor, Progress())
    shown = json.loads(json.dumps(scores.gallery))
    assert len(shown["texts"]) == len(shown["images"]) == 3
    captions = {entry["filename"]: [s["raw"] for s in entry["sentences"]] for entry in json.loads(benchmark_on_disk.annotations.read_text())["images"]}
    for query in shown["texts"]:
        assert len(query["answers"]) == 5
        assert all(answer["right"] == (answer["image"] == query["image"]) for answer in query["answers"])
        assert query["caption"] in captions[query["image"]]
        assert {query["image"], *(answer["image"] for answer in query["answers"])} <= set(shown["thumbnails"])
    for query in shown["images"]:
        assert all(answer["caption"] in captions[query["image"]] for answer in query["answers"] if answer["right"])


def test_a_missing_picture_is_named_before_the_work_begins(benchmark_on_disk) -> None:
    (benchmark_on_disk.pictures / "002.png").unlink()
    with pytest.raises(DataError, match=r"pictures/002\.png: not found") as raised:
        Retrieval(str(benchmark_on_disk.annotations), str(benchmark_on_disk.pictures)).data()
    assert "\n" not in str(raised.value)


def test_a_damaged_picture_is_named(benchmark_on_disk, predictor: AlbefPredictor) -> None:
    (benchmark_on_disk.pictures / "002.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(DataError, match=r"pictures/002\.png"):
        Retrieval(str(benchmark_on_disk.annotations), str(benchmark_on_disk.pictures))(predictor, Progress())


def test_an_image_without_captions_is_named(tmp_path: Path) -> None:
    path = tmp_path / "karpathy.json"
    path.write_text(json.dumps({"images": [{"filename": "bare.png", "split": "test", "imgid": 0, "sentences": []}]}))
    with pytest.raises(DataError, match=r"bare\.png has no caption"):
        Retrieval(str(path), str(tmp_path)).data()


@pytest.mark.parametrize(("option", "value"), [("k_test", -1), ("k_test", "many"), ("rerank_score", "itc"), ("captions_per_image", 0)])
def test_an_impossible_option_is_named_with_its_key(option: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"eval\.tasks\.retrieval\.{option} is {value!r}"):
        Retrieval("a", "b", **{option: value})  # type: ignore[arg-type]
