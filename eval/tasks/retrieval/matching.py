"""The ITM loss on held-out pairs, drawn as in training: a positive and two hard negatives each, in groups."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.random_stream import item_keys, uniforms

Ints = NDArray[np.integer[Any]]
GROUP_SIZE = 64  # pairs that are each other's negatives, as in training
PRIOR_ENTROPY = -(math.log(1 / 3) / 3 + 2 * math.log(2 / 3) / 3)  # loss of always answering "one in three matches": 0.6365
HARD_TEXT, HARD_IMAGE = 180, 181  # random streams


@dataclass(frozen=True)
class MatchingPairs:
    """Pairs with their truth; a third of them match."""

    image_index: NDArray[np.int64]
    text_index: NDArray[np.int64]
    matches: NDArray[np.int64]


def draw_pairs(similarity: NDArray[np.floating[Any]], image_of_text: Ints, temperature: float, limit: int) -> MatchingPairs:
    """At most `limit` positives, and for each a hard text for its image and a hard image for its text.

    The positives go over the images first and their further captions later, so that a group holds many images. The more
    similar by ITC, the likelier a negative is drawn, by a hash: the same draws every time.
    """
    texts = _one_caption_of_each_image_first(image_of_text)[:limit]
    images = image_of_text[texts]
    hard_texts, hard_images = texts.copy(), images.copy()
    for part in np.array_split(np.arange(len(texts)), math.ceil(len(texts) / GROUP_SIZE)):
        logits = similarity[images[part]][:, texts[part]] / temperature
        hard_texts[part] = texts[part][_drawn(logits, images[part], texts[part], HARD_TEXT)]
        hard_images[part] = images[part][_drawn(logits.T, images[part], texts[part], HARD_IMAGE)]
    return MatchingPairs(
        image_index=np.concatenate([images, images, hard_images]),
        text_index=np.concatenate([texts, hard_texts, texts]),
        matches=np.repeat([1, 0, 0], len(texts)),
    )


def matching_metrics(logits: NDArray[np.floating[Any]], matches: Ints) -> dict[str, float]:
    """`itm_loss` (nats), the entropy of its prior, and `itm_accuracy` (percent)."""
    return {
        "itm_loss": float(losses(logits, matches).mean()),
        "itm_prior_entropy": PRIOR_ENTROPY,
        "itm_accuracy": 100.0 * float(np.mean((logits[:, 1] > logits[:, 0]) == (matches == 1))),
    }


def losses(logits: NDArray[np.floating[Any]], matches: Ints) -> NDArray[np.float64]:
    """The ITM loss of each pair, nats."""
    wide = logits.astype(np.float64)
    of_classes: NDArray[np.float64] = np.logaddexp(wide[:, 0], wide[:, 1])[:, None] - wide
    return of_classes[np.arange(len(matches)), matches]


def _one_caption_of_each_image_first(image_of_text: Ints) -> NDArray[np.int64]:
    order = np.argsort(image_of_text, kind="stable")
    starts = np.searchsorted(image_of_text[order], image_of_text[order])
    turn = np.empty(len(order), dtype=np.int64)
    turn[order] = np.arange(len(order)) - starts  # 0 for an image's first caption, 1 for its second, ...
    return np.lexsort((image_of_text, turn)).astype(np.int64)


def _drawn(logits: NDArray[np.floating[Any]], images: Ints, texts: Ints, stream: int) -> NDArray[np.int64]:
    """For each row one column of another image, by Gumbel-max."""
    masked = np.where(images[:, None] == images[None, :], -np.inf, logits)
    gumbel = -np.log(-np.log(uniforms(item_keys(0, 0, texts.astype(np.int64)), stream, len(texts))))
    column: NDArray[np.int64] = np.argmax(masked + gumbel, axis=1)
    return column
