"""Contrast pairs in SugarCrepe's format: does the true caption score higher than one made false by a small change?"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from eval.chunks import Progress
from eval.pictures import read_pictures, sizes
from eval.predictor import Encoded, Predictor
from eval.task import Outcomes, Scores
from pipeline.core import storage
from pipeline.core.errors import ConfigError, DataError
from pipeline.core.run_directory import fingerprint

CHUNK = 256  # pictures or texts between two saves
TEXT_FIELDS = ("filename", "caption", "negative_caption")


@dataclass(frozen=True)
class Pair:
    """A picture with a true and a false caption."""

    filename: str
    caption: str
    negative_caption: str


@dataclass(frozen=True)
class Contrast:
    """Accuracy by ITC and by ITM, a number of each per file; equal scores count as wrong.

    files: JSON files {"id": {"filename", "caption", "negative_caption"}}
    pictures: folder the file names are below
    """

    files: Sequence[str]
    pictures: str

    def __post_init__(self) -> None:
        if isinstance(self.files, str) or not self.files:
            raise ConfigError(f"eval.tasks.contrast.files is {self.files!r}; expected a list of paths")

    def data(self) -> dict[str, Any]:
        pairs = {_name(file): read_pairs(file) for file in self.files}
        names = sorted({pair.filename for of_file in pairs.values() for pair in of_file})
        described = [[name, [[pair.filename, pair.caption, pair.negative_caption] for pair in of_file]] for name, of_file in pairs.items()]
        return {"split_hash": fingerprint(described), "picture_sizes_hash": fingerprint(sizes(self.pictures, names))}

    def __call__(self, predictor: Predictor, progress: Progress) -> Scores:
        outcomes, counts = dict[str, Outcomes](), {}
        for file in self.files:
            pairs, name = read_pairs(file), _name(file)
            _, picture = np.unique([pair.filename for pair in pairs], return_inverse=True)
            for way, margins in zip(("itc", "itm"), self._margins(name, pairs, predictor, progress), strict=True):
                outcomes[f"{name}/{way}"] = Outcomes(100.0 * (margins > 0), picture)
            counts[f"{name}/pairs"] = len(pairs)
        metrics = {name: float(of.values.mean()) for name, of in outcomes.items()}
        return Scores(metrics, counts, reference={"chance": dict.fromkeys(metrics, 50.0)}, outcomes=outcomes)

    def _margins(self, name: str, pairs: Sequence[Pair], predictor: Predictor, progress: Progress) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Score of the true caption minus score of the false one, by ITC and by ITM."""

        def compute(start: int, stop: int) -> dict[str, np.ndarray[Any, Any]]:
            chunk = pairs[start:stop]
            filenames = sorted({pair.filename for pair in chunk})
            images = predictor.encode_images(read_pictures(self.pictures, filenames, predictor.resolution))
            texts = predictor.encode_texts([text for pair in chunk for text in (pair.caption, pair.negative_caption)])
            image_index = np.repeat([filenames.index(pair.filename) for pair in chunk], 2)
            scores = _both_scores(predictor, images, texts, image_index)
            return {way: score[0::2] - score[1::2] for way, score in scores.items()}

        found = progress.in_chunks(f"contrast-{name}", len(pairs), CHUNK, compute)
        return found["itc"], found["itm"]


def _both_scores(predictor: Predictor, images: Encoded, texts: Encoded, image_index: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    itm = predictor.match_logits(images, texts, image_index, np.arange(len(texts)))[:, 1]
    return {"itc": (images.features[image_index] * texts.features).sum(axis=1), "itm": itm}


def read_pairs(path: str) -> list[Pair]:
    """The pairs in the order of the file.

    Raises:
        DataError: not such a file, or empty.
    """
    try:
        entries = json.loads(storage.read_bytes(path))
        pairs = [Pair(*(_text(entry[field]) for field in TEXT_FIELDS)) for entry in entries.values()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not a contrast file ({type(error).__name__}: {error}); expected {{id: {{filename, caption, negative_caption}}}}") from error
    if not pairs:
        raise DataError(f"{path}: holds no pairs")
    return pairs


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a text")
    return value


def _name(file: str) -> str:
    return PurePosixPath(file).stem
