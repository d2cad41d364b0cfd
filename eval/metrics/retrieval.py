"""Recall@k of image-text retrieval as ALBEF, CLIP and their successors report it, with ties counted against the model."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]

RECALL_AT = (1, 5, 10)


def text_ranks(scores: Floats, image_of_text: Ints) -> NDArray[np.int64]:
    """For each image the number of foreign captions at or above its best caption; 0 is a hit at 1.

    Args:
        scores: `[images, texts]`, higher is better; a NaN is worse than anything for a match and better than anything for a foreign one.
        image_of_text: `[texts]`, the row each caption belongs to; an image may have any number of captions from 1.
    """
    ranks = np.empty(len(scores), dtype=np.int64)
    for image, row in enumerate(scores):
        own = image_of_text == image
        assert own.any(), f"image {image} has no caption"
        ranks[image] = np.count_nonzero(~(row[~own] < row[own].max()))
    return ranks


def image_ranks(scores: Floats, image_of_text: Ints) -> NDArray[np.int64]:
    """For each caption the number of foreign images at or above its own; same arguments as `text_ranks`."""
    own = scores[image_of_text, np.arange(scores.shape[1])]
    at_or_above: NDArray[np.int64] = np.count_nonzero(~(scores < own), axis=0)
    return at_or_above - 1  # its own image is in the count: nothing is below itself


def recall(ranks: Ints, k: int) -> float:
    """Share of queries whose answer is among the first k, in percent."""
    return 100.0 * float(np.mean(ranks < k))


def summary(text: Ints, image: Ints) -> dict[str, float]:
    """`text_recall@k`, `image_recall@k` for k = 1, 5, 10, their means and `r_mean`, in percent."""
    metrics = {f"text_recall@{k}": recall(text, k) for k in RECALL_AT}
    metrics |= {f"image_recall@{k}": recall(image, k) for k in RECALL_AT}
    metrics["text_recall_mean"] = float(np.mean([metrics[f"text_recall@{k}"] for k in RECALL_AT]))
    metrics["image_recall_mean"] = float(np.mean([metrics[f"image_recall@{k}"] for k in RECALL_AT]))
    metrics["r_mean"] = (metrics["text_recall_mean"] + metrics["image_recall_mean"]) / 2
    return metrics


def chance(captions_per_image: Sequence[int]) -> dict[str, float]:
    """What random scores give on average: the row every table should be read against."""
    images, texts = len(captions_per_image), sum(captions_per_image)
    metrics = {f"text_recall@{k}": 100.0 * float(np.mean([1 - _all_miss(texts, own, k) for own in captions_per_image])) for k in RECALL_AT}
    return metrics | {f"image_recall@{k}": 100.0 * min(1.0, k / images) for k in RECALL_AT}


def _all_miss(texts: int, own: int, k: int) -> float:
    """Probability that k texts drawn without replacement hold none of the `own` captions."""
    return float(np.prod([max(0, texts - own - drawn) / (texts - drawn) for drawn in range(min(k, texts))]))
