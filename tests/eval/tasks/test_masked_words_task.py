"""Masked words, against the model asked about one caption at a time."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from eval.chunks import Progress
from eval.pictures import read_pictures
from eval.predictor import AlbefPredictor
from eval.suite import read_outcomes, run
from eval.tasks.masked_words import MaskedWords
from pipeline.core.errors import DataError
from shards.pixels.transforms import MEAN, STD
from shards.text_rules import pre_caption


def plain_log_probability(predictor: AlbefPredictor, picture: np.ndarray, input_ids: tuple[int, ...], position: int) -> np.ndarray:
    """MLM's log-probabilities at one position, one caption by itself."""
    pixels = ((torch.tensor(picture, dtype=torch.float32) / 255 - torch.tensor(MEAN)) / torch.tensor(STD)).permute(2, 0, 1)[None]
    masked = torch.tensor([input_ids])
    mask = torch.ones_like(masked)
    with torch.no_grad():
        fused = predictor.model.fuse(predictor.model.encode_text(masked, mask), mask, predictor.model.encode_image(pixels))
        found: np.ndarray = predictor.model.mlm_head(fused)[0, position].log_softmax(dim=0).numpy()
    return found


def test_words_are_hidden_whole_and_each_once(predictor: AlbefPredictor) -> None:
    text = "A red, round moon!"
    input_ids = predictor.tokenizer.encode([pre_caption(text)], 30)[0][0].tolist()
    found = predictor.hidden_words(text)
    assert [one.word for one in found] == ["a", "red", "round", "moon"]
    for one in found:
        pieces = [place for place, number in enumerate(one.input_ids) if number == predictor.tokenizer.mask_id]
        assert "".join(predictor.tokenizer.pieces(input_ids[place] for place in pieces)).replace("##", "") == one.word
        assert [number for place, number in enumerate(one.input_ids) if place not in pieces] == [n for place, n in enumerate(input_ids) if place not in pieces]
        assert (one.position, one.answer) == (pieces[0], input_ids[pieces[0]])
    assert predictor.hidden_words("!!!") == []


def test_the_figures_equal_those_counted_caption_by_caption(benchmark_on_disk, make_predictor) -> None:
    predictor = make_predictor(state_type="float32", batch_size=2, pairs_per_batch=5)
    task = MaskedWords(str(benchmark_on_disk.annotations), str(benchmark_on_disk.pictures))
    scores = task(predictor, Progress())
    images = task.images()
    shown = read_pictures(str(benchmark_on_disk.pictures), [image.path for image in images], 16)
    rows = [(number, caption) for number, image in enumerate(images) for caption in image.captions]
    assert scores.counts == {"captions": len(rows), "words": len(rows)}
    for way, beside in (("", 0), ("_beside_another_picture", 1)):
        losses = []
        for (image, caption), loss in zip(rows, scores.outcomes[f"loss{way}"].values, strict=True):
            picture = shown[(image + beside) % len(images)]
            found = [-plain_log_probability(predictor, picture, one.input_ids, one.position)[one.answer] for one in predictor.hidden_words(caption)]
            losses.append(min(found, key=lambda value, loss=loss: abs(value - loss)))  # the word asked for is one of the caption's
        np.testing.assert_allclose(scores.outcomes[f"loss{way}"].values, losses, rtol=1e-4)
        assert scores.metrics[f"loss{way}"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert scores.metrics["loss"] != scores.metrics["loss_beside_another_picture"]
    assert scores.outcomes["accuracy"].picture.tolist() == [image for image, _ in rows]


def test_captions_without_a_word_are_left_out_and_a_split_of_one_picture_is_refused(benchmark_on_disk, predictor: AlbefPredictor) -> None:
    content = json.loads(benchmark_on_disk.annotations.read_text())
    test_images = [image for image in content["images"] if image["split"] == "test"]
    test_images[0]["sentences"] = [{"raw": "?!"}]
    benchmark_on_disk.annotations.write_text(json.dumps({"images": test_images[:3]}))
    scores = MaskedWords(str(benchmark_on_disk.annotations), str(benchmark_on_disk.pictures))(predictor, Progress())
    assert scores.counts["captions"] - scores.counts["words"] == 1
    assert set(scores.outcomes["loss"].picture) == {1, 2}
    benchmark_on_disk.annotations.write_text(json.dumps({"images": test_images[:1]}))
    with pytest.raises(DataError, match="has one picture"):
        MaskedWords(str(benchmark_on_disk.annotations), str(benchmark_on_disk.pictures)).data()


def test_the_outcomes_on_disk_are_those_the_metrics_are_the_means_of(benchmark_on_disk, make_predictor, tmp_path: Path) -> None:
    config = benchmark_on_disk.config(itm_ranking_pictures=4)
    config = config.model_copy(
        update={"tasks": {**config.tasks, "masked_words": {"annotations": str(benchmark_on_disk.annotations), "pictures": str(benchmark_on_disk.pictures)}}}
    )
    metrics = run(config, "checkpoint", tmp_path, lambda *_: make_predictor())
    means = {f"{task}/{name}": of.values.mean() for task in config.tasks for name, of in read_outcomes(tmp_path, task).items()}
    assert {"retrieval/itc/text_recall@1", "retrieval/itm/image_recall@1", "retrieval/itm_loss", "contrast/swapped/itm", "masked_words/accuracy"} <= set(means)
    for name, mean in means.items():
        assert metrics[name] == pytest.approx(mean)
    with pytest.raises(DataError, match="run eval again"):
        read_outcomes(tmp_path, "nothing")
