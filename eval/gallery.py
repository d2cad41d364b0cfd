"""Queries with their best answers, for a person to look at: spread evenly over the split, not chosen."""

import base64
import io
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from eval.pictures import read_picture
from shards.annotations.karpathy import KarpathyImage
from shards.pixels.decode import Picture

ANSWERS = 5
THUMBNAIL_SIDE = 128  # pixels
JPEG_QUALITY = 80

Ints = NDArray[np.integer[Any]]


class Ranking(Protocol):
    """The order in which a model gives its answers."""

    def best(self, query: int, count: int) -> Ints:
        """The first answers of a query."""


def gallery(
    folder: str, images: Sequence[KarpathyImage], captions: Sequence[str], image_of_text: Ints, texts_of: Ranking, images_of: Ranking, count: int
) -> dict[str, Any]:
    """JSON values: `texts` (queries with their best pictures), `images` (queries with their best captions), `thumbnails` by picture name.

    Args:
        folder: where the pictures lie.
        texts_of: best captions of a picture.
        images_of: best pictures of a caption.
        count: queries of each direction.
    """
    of_texts = [
        {
            "caption": captions[text],
            "image": images[image_of_text[text]].path,
            "answers": [{"image": images[image].path, "right": bool(image == image_of_text[text])} for image in images_of.best(text, ANSWERS)],
        }
        for text in _spread(len(captions), count)
    ]
    of_images = [
        {
            "image": images[image].path,
            "answers": [{"caption": captions[text], "right": bool(image_of_text[text] == image)} for text in texts_of.best(image, ANSWERS)],
        }
        for image in _spread(len(images), count)
    ]
    shown = {query["image"] for query in of_texts + of_images} | {answer["image"] for query in of_texts for answer in query["answers"]}
    return {"texts": of_texts, "images": of_images, "thumbnails": {name: thumbnail(read_picture(folder, name)) for name in sorted(shown)}}


def _spread(total: int, count: int) -> list[int]:
    """At most `count` different numbers of [0, total), evenly apart, the middle of each stretch."""
    count = min(count, total)
    return [(2 * number + 1) * total // (2 * count) for number in range(count)]


def thumbnail(picture: Picture, side: int = THUMBNAIL_SIDE) -> str:
    """A small JPEG in base64, no side longer than `side` pixels."""
    image = Image.fromarray(picture)
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return base64.b64encode(buffer.getvalue()).decode()
