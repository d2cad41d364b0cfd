"""The batched predictor against the model asked about one pair at a time."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from eval.predictor import AlbefPredictor
from shards.pixels.transforms import MEAN, STD
from shards.text_rules import pre_caption

TEXTS = ["A red, round moon!", "the star", "a green square left of the blue star", "moon", "right of a red star"]


def pictures(count: int) -> list[np.ndarray]:
    return list(np.random.default_rng(1).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8))


def plain_pair(predictor: AlbefPredictor, picture: np.ndarray, text: str) -> tuple[np.ndarray, float]:
    """(ITM logits, cosine) of one pair, straight through the model."""
    model = predictor.model
    pixels = (torch.tensor(picture, dtype=torch.float32) / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    input_ids, mask = predictor.tokenizer.encode([pre_caption(text)], 30)
    with torch.no_grad():
        image_embeds = model.encode_image(pixels.permute(2, 0, 1)[None])
        text_embeds = model.encode_text(input_ids, mask)
        fused = model.fuse(text_embeds, mask, image_embeds)
        cosine = (model.image_feat(image_embeds) * model.text_feat(text_embeds)).sum()
        return model.itm_head(fused[:, 0])[0].numpy(), float(cosine)


def test_batched_scores_equal_those_of_single_pairs(make_predictor: Callable[..., AlbefPredictor]) -> None:
    predictor = make_predictor(state_type="float32", batch_size=2, pairs_per_batch=4)
    shown = pictures(3)
    images, texts = predictor.encode_images(shown), predictor.encode_texts(TEXTS)
    image_index, text_index = np.divmod(np.random.default_rng(2).permutation(15), 5)
    logits = predictor.match_logits(images, texts, image_index, text_index)
    for image, text, found in zip(image_index, text_index, logits, strict=True):
        expected, cosine = plain_pair(predictor, shown[image], TEXTS[text])
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
        assert images.features[image] @ texts.features[text] == pytest.approx(cosine, abs=1e-6)


def test_half_precision_states_change_the_logits_little(make_predictor: Callable[..., AlbefPredictor]) -> None:
    def logits(state_type: str) -> np.ndarray:
        predictor = make_predictor(state_type=state_type)
        index = np.arange(5)
        return predictor.match_logits(predictor.encode_images(pictures(5)), predictor.encode_texts(TEXTS), index, index)

    half, full = logits("float16"), logits("float32")
    assert not np.array_equal(half, full)
    np.testing.assert_allclose(half, full, atol=0.01)


def test_the_settings_tell_other_weights_apart(make_predictor: Callable[..., AlbefPredictor]) -> None:
    assert make_predictor(0).settings == make_predictor(0).settings
    assert make_predictor(0).settings["weights"] != make_predictor(1).settings["weights"]
    assert make_predictor(max_words=7).settings != make_predictor().settings
