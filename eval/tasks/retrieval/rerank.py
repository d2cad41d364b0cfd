"""Re-ranking: the pairs ITC finds most similar are read again by the fusion layers and ordered by their ITM score."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from eval.chunks import Progress
from eval.predictor import Encoded, Predictor

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]
RerankScore = Literal["itm", "itm+itc"]


@dataclass(frozen=True)
class Reranked:
    """For each query its candidates, best first by similarity, and what they score on second reading."""

    candidates: Ints  # [queries, k]
    scores: Floats  # [queries, k]

    def best(self, query: int, count: int) -> Ints:
        """The first answers in the new order."""
        order = np.argsort(-self.scores[query], kind="stable")[:count]
        answers: Ints = self.candidates[query, order]
        return answers

    def ranks(self, own: NDArray[np.bool_], first_ranks: Ints) -> NDArray[np.int64]:
        """For each query the number of foreign candidates at or above its best own one.

        Args:
            own: `[queries, k]`, which candidates are right.
            first_ranks: `[queries]`, ranks before re-ranking; they stand where no right answer is among the candidates,
                since those keep their order behind the candidates.
        """
        best_own = np.where(own, self.scores, -np.inf).max(axis=1, keepdims=True)
        ranks = np.count_nonzero(~own & ~(self.scores < best_own), axis=1)
        return np.where(own.any(axis=1), ranks, first_ranks).astype(np.int64)


def most_similar(similarity: Floats, k: int) -> NDArray[np.int64]:
    """The k best columns of each row, best first; fewer when there are fewer columns."""
    return np.stack([np.argsort(-row, kind="stable")[:k] for row in similarity]).astype(np.int64)


def rerank(
    predictor: Predictor, images: Encoded, texts: Encoded, similarity: Floats, k: int, score: RerankScore, progress: Progress, pairs_per_save: int
) -> tuple[Reranked, Reranked, int]:
    """Re-rank both directions: `(texts of each image, images of each text, number of pairs scored)`.

    A pair that is a candidate in both directions is scored once.
    """
    # Candidates are saved like scores: matrix products differ in the last bit between machines, and a tie may fall another way.
    texts_of = progress.in_chunks("candidate-texts", len(images), len(images), lambda *_: {"columns": most_similar(similarity, k)})["columns"]
    images_of = progress.in_chunks("candidate-images", len(texts), len(texts), lambda *_: {"columns": most_similar(similarity.T, k)})["columns"]
    codes_by_image = np.arange(len(images))[:, None] * len(texts) + texts_of
    codes_by_text = images_of * len(texts) + np.arange(len(texts))[:, None]
    codes = np.unique(np.concatenate([codes_by_image.ravel(), codes_by_text.ravel()]))  # sorted: the texts of one image lie together
    image_index, text_index = np.divmod(codes, len(texts))
    scores: Floats = pair_logits("rerank", predictor, images, texts, image_index, text_index, progress, pairs_per_save)[:, 1]
    if score == "itm+itc":
        scores = scores + similarity[image_index, text_index]
    found = [Reranked(columns, scores[np.searchsorted(codes, wanted)]) for columns, wanted in ((texts_of, codes_by_image), (images_of, codes_by_text))]
    return found[0], found[1], len(codes)


def pair_logits(
    name: str, predictor: Predictor, images: Encoded, texts: Encoded, image_index: Ints, text_index: Ints, progress: Progress, pairs_per_save: int
) -> NDArray[np.float32]:
    """ITM logits `[P, 2]` of many pairs, saved every `pairs_per_save`."""

    def compute(start: int, stop: int) -> dict[str, NDArray[Any]]:
        return {"logits": predictor.match_logits(images, texts, image_index[start:stop], text_index[start:stop])}

    return progress.in_chunks(name, len(image_index), pairs_per_save, compute)["logits"]
