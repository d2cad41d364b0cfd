"""Recall@k against two independent libraries and a plain reading of its definition."""

import os

import numpy as np
import pytest
import torch
from clip_benchmark.metrics.zeroshot_retrieval import recall_at_k

os.environ.setdefault("NUMBA_DISABLE_JIT", "1")  # before ranx: compiling it takes a minute, our cases a moment
from ranx import Qrels, Run, evaluate

from eval.metrics.retrieval import chance, image_ranks, recall, summary, text_ranks

CASES = [([5] * 20, 0), ([1, 7, 2, 3, 5, 1, 4, 6, 2, 2, 9, 1], 1), ([1] * 30, 2)]


def random_case(captions: list[int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    image_of_text = rng.permutation(np.repeat(np.arange(len(captions)), captions))  # captions of an image need not be neighbours
    scores = rng.normal(size=(len(captions), len(image_of_text)))
    scores[image_of_text, np.arange(len(image_of_text))] += 1.0
    return scores, image_of_text


@pytest.mark.parametrize(("captions", "seed"), CASES)
@pytest.mark.parametrize("k", [1, 5, 10])
def test_recalls_equal_those_of_clip_benchmark(captions: list[int], seed: int, k: int) -> None:
    scores, image_of_text = random_case(captions, seed)
    positive = torch.tensor(image_of_text[:, None] == np.arange(len(captions)))  # [texts, images]
    by_text, by_image = torch.tensor(scores.T), torch.tensor(scores)
    assert recall(image_ranks(scores, image_of_text), k) == pytest.approx(100 * (recall_at_k(by_text, positive, k) > 0).double().mean().item())
    assert recall(text_ranks(scores, image_of_text), k) == pytest.approx(100 * (recall_at_k(by_image, positive.T, k) > 0).double().mean().item())


@pytest.mark.parametrize(("captions", "seed"), CASES)
def test_recalls_equal_the_hit_rates_of_ranx(captions: list[int], seed: int) -> None:
    scores, image_of_text = random_case(captions, seed)
    right = image_of_text == np.arange(len(captions))[:, None]
    for ranks, rows, hits in ((text_ranks(scores, image_of_text), scores, right), (image_ranks(scores, image_of_text), scores.T, right.T)):
        run = Run({f"q{q}": {f"d{d}": float(score) for d, score in enumerate(row)} for q, row in enumerate(rows)})
        qrels = Qrels({f"q{q}": {f"d{d}": 1 for d in np.flatnonzero(row)} for q, row in enumerate(hits)})
        theirs = evaluate(qrels, run, ["hit_rate@1", "hit_rate@5", "hit_rate@10"])
        assert [recall(ranks, k) for k in (1, 5, 10)] == pytest.approx([100 * theirs[f"hit_rate@{k}"] for k in (1, 5, 10)])


def test_an_image_counts_when_any_of_its_captions_is_found() -> None:
    scores = np.array([[0.9, -1.0, 0.5, 0.4], [0.1, 0.2, 0.3, -1.0]])  # image 0 owns captions 0 and 1, image 1 owns 2 and 3
    image_of_text = np.array([0, 0, 1, 1])
    assert text_ranks(scores, image_of_text).tolist() == [0, 0]
    assert image_ranks(scores, image_of_text).tolist() == [0, 1, 1, 1]


def test_ties_count_against_the_model() -> None:
    image_of_text = np.array([0, 0, 1, 2])
    assert text_ranks(np.zeros((3, 4)), image_of_text).tolist() == [2, 3, 3]
    assert image_ranks(np.zeros((3, 4)), image_of_text).tolist() == [2, 2, 2, 2]


def test_a_model_of_nans_finds_nothing() -> None:
    image_of_text = np.arange(20)
    scores = np.full((20, 20), np.nan)
    assert summary(text_ranks(scores, image_of_text), image_ranks(scores, image_of_text))["r_mean"] == 0.0


def test_the_means_are_of_both_directions() -> None:
    metrics = summary(np.array([0, 4, 9, 20]), np.array([0, 0, 7, 20]))
    assert [metrics[f"text_recall@{k}"] for k in (1, 5, 10)] == [25, 50, 75]
    assert [metrics[f"image_recall@{k}"] for k in (1, 5, 10)] == [50, 50, 75]
    assert metrics["r_mean"] == pytest.approx((50 + 175 / 3) / 2)


def test_chance_is_what_random_scores_give_on_average() -> None:
    captions = [1, 2, 3, 4, 5, 6, 7, 2]
    expected = chance(captions)
    rng = np.random.default_rng(3)
    image_of_text = np.repeat(np.arange(len(captions)), captions)
    trials = [rng.random((len(captions), len(image_of_text))) for _ in range(3000)]
    for k in (1, 5, 10):
        found_texts = np.mean([recall(text_ranks(scores, image_of_text), k) for scores in trials])
        found_images = np.mean([recall(image_ranks(scores, image_of_text), k) for scores in trials])
        assert found_texts == pytest.approx(expected[f"text_recall@{k}"], abs=1.5)
        assert found_images == pytest.approx(expected[f"image_recall@{k}"], abs=1.5)
