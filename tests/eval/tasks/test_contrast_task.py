"""Contrast pairs: the true caption must score strictly higher."""

import json
from pathlib import Path

import numpy as np
import pytest

from eval.chunks import Progress
from eval.pictures import read_pictures
from eval.predictor import AlbefPredictor
from eval.tasks.contrast import Contrast
from pipeline.core.errors import ConfigError, DataError


def test_the_accuracies_equal_those_counted_pair_by_pair(benchmark_on_disk, predictor: AlbefPredictor) -> None:
    scores = Contrast([str(benchmark_on_disk.contrast)], str(benchmark_on_disk.pictures))(predictor, Progress())
    by_itc, by_itm = [], []
    for entry in json.loads(benchmark_on_disk.contrast.read_text()).values():
        images = predictor.encode_images(read_pictures(str(benchmark_on_disk.pictures), [entry["filename"]], 16))
        texts = predictor.encode_texts([entry["caption"], entry["negative_caption"]])
        itc = texts.features @ images.features[0]
        itm = predictor.match_logits(images, texts, np.zeros(2, dtype=int), np.arange(2))[:, 1]
        by_itc.append(itc[0] > itc[1])
        by_itm.append(itm[0] > itm[1])
    assert scores.metrics == {"swapped/itc": pytest.approx(100 * np.mean(by_itc)), "swapped/itm": pytest.approx(100 * np.mean(by_itm))}
    assert scores.counts == {"swapped/pairs": 15}


def test_equal_scores_count_as_wrong(benchmark_on_disk, predictor: AlbefPredictor) -> None:
    entries = json.loads(benchmark_on_disk.contrast.read_text())
    for entry in entries.values():
        entry["negative_caption"] = entry["caption"]
    benchmark_on_disk.contrast.write_text(json.dumps(entries))
    scores = Contrast([str(benchmark_on_disk.contrast)], str(benchmark_on_disk.pictures))(predictor, Progress())
    assert scores.metrics == {"swapped/itc": 0, "swapped/itm": 0}


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"1": {"filename": "a.png"}}', '{"1": {"filename": "a.png", "caption": 3, "negative_caption": "x"}}', "not json"]
)
def test_a_file_of_another_kind_is_named_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "swapped.json").write_text(text)
    with pytest.raises(DataError, match=r"swapped\.json") as raised:
        Contrast([str(tmp_path / "swapped.json")], str(tmp_path)).data()
    assert "\n" not in str(raised.value)


def test_a_single_path_where_a_list_belongs_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"eval\.tasks\.contrast\.files"):
        Contrast("swapped.json", "pictures")
