"""Masked words of held-out captions: does the model name what is hidden, and does it need the picture for it?"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.chunks import Progress
from eval.pictures import read_pictures, sizes
from eval.predictor import Predictor
from eval.task import Outcomes, Scores
from pipeline.core.errors import DataError
from pipeline.core.run_directory import fingerprint
from shards.annotations.karpathy import KarpathyImage, read_karpathy
from shards.random_stream import item_keys, uniforms

CHUNK = 256  # captions between two saves
HIDDEN_WORD = 182  # random stream
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class MaskedWords:
    """`accuracy` (percent) and `loss` (nats) of MLM on one hidden word a caption, and both beside another picture: what words alone would give away.

    A word of several pieces is hidden whole and asked for by its first piece. The word is drawn by a hash: the same one for every model
    that splits captions alike.

    annotations, pictures, split: Karpathy JSON, the folder its paths are below, and which of its images
    """

    annotations: str
    pictures: str
    split: str = "test"

    def images(self) -> list[KarpathyImage]:
        """The images of the split; another picture takes two."""
        images = read_karpathy(self.annotations, self.split)
        if len(images) < 2:
            raise DataError(f"{self.annotations}: split {self.split!r} has one picture, and words are also asked for beside another one; take a larger split")
        return images

    def data(self) -> dict[str, Any]:
        images = self.images()
        described = [[image.path, list(image.captions)] for image in images]
        return {"split_hash": fingerprint(described), "picture_sizes_hash": fingerprint(sizes(self.pictures, [image.path for image in images]))}

    def __call__(self, predictor: Predictor, progress: Progress) -> Scores:
        images = self.images()
        captions = [(number, caption) for number, image in enumerate(images) for caption in image.captions]
        draws = uniforms(item_keys(0, 0, np.arange(len(captions))), HIDDEN_WORD, 1)[:, 0]

        def compute(start: int, stop: int) -> dict[str, NDArray[Any]]:
            asked = [(image, caption, draw) for (image, caption), draw in zip(captions[start:stop], draws[start:stop], strict=True)]
            return self._asked(images, asked, predictor)

        found = progress.in_chunks("masked-words", len(captions), CHUNK, compute)
        asked = found["asked"]  # a caption of punctuation alone has no word to hide
        if not asked.any():
            raise DataError(f"{self.annotations}: no caption of split {self.split!r} has a word")
        picture = np.array([image for image, _ in captions])[asked]
        outcomes = {name: Outcomes(values[asked], picture) for name, values in found.items() if name != "asked"}
        metrics = {name: float(of.values.mean()) for name, of in outcomes.items()}
        return Scores(metrics, {"captions": len(captions), "words": int(asked.sum())}, outcomes=outcomes)

    def _asked(self, images: list[KarpathyImage], asked: list[tuple[int, str, float]], predictor: Predictor) -> dict[str, NDArray[Any]]:
        """Accuracies and losses of these captions, 0 where there is no word, and which have one."""
        words = [predictor.hidden_words(caption) for _, caption, _ in asked]
        rows = np.array([row for row, of_caption in enumerate(words) if of_caption], dtype=np.int64)
        hidden = [words[row][int(asked[row][2] * len(words[row]))] for row in rows]
        own = np.array([asked[row][0] for row in rows], dtype=np.int64)
        found = {name: np.zeros(len(asked)) for way in ("", "_beside_another_picture") for name in (f"accuracy{way}", f"loss{way}")}
        if hidden:
            answers = np.array([one.answer for one in hidden])
            for way, beside in (("", own), ("_beside_another_picture", (own + 1) % len(images))):
                shown, index = np.unique(beside, return_inverse=True)
                pictures = predictor.encode_images(read_pictures(self.pictures, [images[number].path for number in shown], predictor.resolution))
                log_probability = predictor.word_log_probabilities(pictures, index.reshape(-1), hidden)
                found[f"accuracy{way}"][rows] = 100.0 * (log_probability.argmax(axis=1) == answers)
                found[f"loss{way}"][rows] = -log_probability[np.arange(len(answers)), answers]
        return {**found, "asked": np.isin(np.arange(len(asked)), rows)}
