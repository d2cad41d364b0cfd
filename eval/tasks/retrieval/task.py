"""The retrieval benchmark: its options, its data, and the order of its work."""

from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from eval.chunks import Progress
from eval.gallery import gallery
from eval.metrics import retrieval as metric
from eval.pictures import read_pictures, sizes
from eval.predictor import Encoded, Predictor
from eval.task import Outcomes, Scores
from eval.tasks.retrieval.matching import draw_pairs, losses, matching_metrics
from eval.tasks.retrieval.rerank import Reranked, RerankScore, most_similar, pair_logits, rerank
from pipeline.core.errors import ConfigError, DataError
from pipeline.core.run_directory import fingerprint
from shards.annotations.karpathy import KarpathyImage, read_karpathy

CHUNK = 256  # pictures or texts between two saves
Ints = NDArray[np.integer[Any]]


class Ranks(NamedTuple):
    """How many wrong answers stand at or above the right one, for each query of both directions."""

    of_texts: Ints  # [images]
    of_images: Ints  # [captions]
    image_of_text: Ints  # [captions]

    def outcomes(self) -> dict[str, Outcomes]:
        """The recalls query by query, in percent."""
        images = np.arange(len(self.of_texts))
        text = {f"text_recall@{k}": Outcomes(100.0 * (self.of_texts < k), images) for k in metric.RECALL_AT}
        return text | {f"image_recall@{k}": Outcomes(100.0 * (self.of_images < k), self.image_of_text) for k in metric.RECALL_AT}


@dataclass(frozen=True)
class Retrieval:
    """TR@k and IR@k for k = 1, 5, 10, by ITC alone and re-ranked by ITM, and the ITM loss on held-out pairs.

    annotations, pictures, split: Karpathy JSON, the folder its paths are below, and which of its images
    captions_per_image: use only the first so many (5 for the COCO protocols that count 25,000 captions); null is all
    k_test: candidates re-ranked per query, 0 for none (128 for Flickr30K and 256 for COCO in the paper)
    rerank_score: `itm` as in the paper, or `itm+itc`, which adds the similarity
    itm_loss_pairs: positives the ITM loss is measured on, 0 for none
    itm_ranking_pictures: of so many first images and their first captions, every pair is also ranked by ITM alone: what a model has that
        learned no ITC; 0 for none
    gallery: queries of each direction to show with their five best answers
    pairs_per_save: scored pairs between two saves of the progress
    """

    annotations: str
    pictures: str
    split: str = "test"
    captions_per_image: int | None = None
    k_test: int = 128
    rerank_score: RerankScore = "itm"
    itm_loss_pairs: int = 512
    itm_ranking_pictures: int = 0
    gallery: int = 8
    pairs_per_save: int = 8192

    def __post_init__(self) -> None:
        if self.rerank_score not in get_args(RerankScore):
            raise ConfigError(f"eval.tasks.retrieval.rerank_score is {self.rerank_score!r}; expected one of {', '.join(get_args(RerankScore))}")
        for name, least in (
            ("k_test", 0),
            ("itm_loss_pairs", 0),
            ("itm_ranking_pictures", 0),
            ("gallery", 0),
            ("pairs_per_save", 1),
            ("captions_per_image", 1),
        ):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < least):
                raise ConfigError(f"eval.tasks.retrieval.{name} is {value!r}; expected a whole number of at least {least}")

    def images(self) -> list[KarpathyImage]:
        """The images of the split with the captions that count."""
        images = read_karpathy(self.annotations, self.split)
        if bare := next((image.path for image in images if not image.captions), None):
            raise DataError(f"{self.annotations}: {bare} has no caption, so it can be no one's answer")
        return [KarpathyImage(image.path, image.captions[: self.captions_per_image], image.image_id) for image in images]

    def data(self) -> dict[str, Any]:
        images = self.images()
        described = [[image.path, list(image.captions)] for image in images]
        return {"split_hash": fingerprint(described), "picture_sizes_hash": fingerprint(sizes(self.pictures, [image.path for image in images]))}

    def __call__(self, predictor: Predictor, progress: Progress) -> Scores:
        split = self.images()
        captions = [caption for image in split for caption in image.captions]
        image_of_text = np.repeat(np.arange(len(split)), [len(image.captions) for image in split])
        images, texts = self._encoded(split, captions, predictor, progress)
        similarity = images.features @ texts.features.T
        ranks = {"itc": Ranks(metric.text_ranks(similarity, image_of_text), metric.image_ranks(similarity, image_of_text), image_of_text)}
        counts = {"images": len(ranks["itc"].of_texts), "captions": len(ranks["itc"].of_images)}
        texts_of, images_of = _unranked(similarity, self.k_test or 5)
        if self.k_test:
            texts_of, images_of, counts["pairs_reranked"] = rerank(
                predictor, images, texts, similarity, self.k_test, self.rerank_score, progress, self.pairs_per_save
            )
            own_texts = image_of_text[texts_of.candidates] == np.arange(len(split))[:, None]
            own_images = images_of.candidates == image_of_text[:, None]
            first = ranks["itc"]
            ranks["reranked"] = Ranks(texts_of.ranks(own_texts, first.of_texts), images_of.ranks(own_images, first.of_images), image_of_text)
        if self.itm_ranking_pictures:
            ranks["itm"] = self._ranks_by_itm(images, texts, image_of_text, predictor, progress)
            counts["itm_ranking_pictures"] = len(ranks["itm"].of_texts)
        metrics = {f"{way}/{name}": value for way, of in ranks.items() for name, value in metric.summary(of.of_texts, of.of_images).items()}
        outcomes = {f"{way}/{name}": found for way, of in ranks.items() for name, found in of.outcomes().items()}
        if self.itm_loss_pairs and len(split) > 1:
            pairs = draw_pairs(similarity, image_of_text, predictor.temperature, self.itm_loss_pairs)
            logits = pair_logits("matching", predictor, images, texts, pairs.image_index, pairs.text_index, progress, self.pairs_per_save)
            metrics |= matching_metrics(logits, pairs.matches)
            counts["itm_pairs"] = len(logits)
            outcomes["itm_loss"] = Outcomes(losses(logits, pairs.matches), np.tile(pairs.image_index[: len(logits) // 3], 3))
        _check_counts(counts, split, captions)
        shown = gallery(self.pictures, split, captions, image_of_text, texts_of, images_of, self.gallery) if self.gallery else None
        return Scores(metrics, counts, {"chance": metric.chance([len(image.captions) for image in split])}, shown, outcomes)

    def _ranks_by_itm(self, images: Encoded, texts: Encoded, image_of_text: Ints, predictor: Predictor, progress: Progress) -> "Ranks":
        _, first_captions = np.unique(image_of_text, return_index=True)
        captions = first_captions[: self.itm_ranking_pictures]
        image, caption = np.indices((len(captions), len(captions))).reshape(2, -1)
        logits = pair_logits("itm-ranking", predictor, images, texts, image, captions[caption], progress, self.pairs_per_save)
        scores, own = logits[:, 1].reshape(len(captions), len(captions)), np.arange(len(captions))
        return Ranks(metric.text_ranks(scores, own), metric.image_ranks(scores, own), own)

    def _encoded(self, split: list[KarpathyImage], captions: list[str], predictor: Predictor, progress: Progress) -> tuple[Encoded, Encoded]:
        paths = [image.path for image in split]

        def encode_images(start: int, stop: int) -> dict[str, NDArray[Any]]:
            return vars(predictor.encode_images(read_pictures(self.pictures, paths[start:stop], predictor.resolution)))

        def encode_texts(start: int, stop: int) -> dict[str, NDArray[Any]]:
            return vars(predictor.encode_texts(captions[start:stop]))

        images = Encoded(**progress.in_chunks("images", len(paths), CHUNK, encode_images))
        texts = Encoded(**progress.in_chunks("texts", len(captions), CHUNK, encode_texts))
        return images, texts


def _unranked(similarity: NDArray[np.floating[Any]], k: int) -> tuple[Reranked, Reranked]:
    """The order of ITC in the form of a re-ranked one."""
    found = []
    for scores in (similarity, similarity.T):
        candidates = most_similar(scores, k)
        found.append(Reranked(candidates, np.take_along_axis(scores, candidates, axis=1)))
    return found[0], found[1]


def _check_counts(counts: dict[str, int], split: list[KarpathyImage], captions: list[str]) -> None:
    """Every image and every caption of the split is one query."""
    assert counts["images"] == len(split), f"{counts['images']} images scored, {len(split)} in the split"
    assert counts["captions"] == len(captions), f"{counts['captions']} captions scored, {len(captions)} in the split"
