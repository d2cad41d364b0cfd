"""Which pictures are held out: those that a caption of their own can find, and that have no near twin."""

import hashlib
import logging
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from pipeline.app.openclipart.captions import text_key, words_of
from pipeline.app.openclipart.pictures import Picture
from pipeline.core.errors import DataError

log = logging.getLogger(__name__)

MIN_HELD_OUT_SIDE = 32  # pixels
MAX_HELD_OUT_ASPECT = 4.0
NEAR_TWIN_DISTANCE = 6.0  # root mean square of 0..255 between 16 x 16 thumbnails; under it lie copies and their touched-up versions
BLANK_DEVIATION = 1.0  # standard deviation of 0..255: white drawings on a transparent ground vanish on white paper


def split(pictures: list[Picture], test: int, val: int) -> None:
    """Hold out `test` + `val` pictures that a caption of their own can find; which ones depends on nothing but their names.

    A held-out picture keeps the captions no other picture has, and has no near twin anywhere.
    """
    sharing = Counter(key for picture in pictures for key in {text_key(caption) for caption in picture.captions})
    eligible = [picture for picture in pictures if _can_be_held_out(picture, sharing)]
    eligible = _without_near_twins(eligible, pictures)
    if len(eligible) < test + val:
        raise DataError(f"openclipart: {test + val} pictures were to be held out, but only {len(eligible)} have a title of their own; ask for fewer")
    log.info("openclipart: %d of %d pictures could be held out", len(eligible), len(pictures))
    for position, picture in enumerate(sorted(eligible, key=shuffled)[: test + val]):
        picture.split = "test" if position < test else "val"
        picture.captions = [caption for caption in picture.captions if _distinctive(caption, sharing)]


def _can_be_held_out(picture: Picture, sharing: Counter[str]) -> bool:
    width, height = picture.size
    visible = picture.thumbnail is not None and float(picture.thumbnail.std()) > BLANK_DEVIATION
    shaped = min(width, height) >= MIN_HELD_OUT_SIDE and max(width, height) <= MAX_HELD_OUT_ASPECT * min(width, height)
    return visible and shaped and picture.titled and _distinctive(picture.captions[0], sharing)


def _distinctive(caption: str, sharing: Counter[str]) -> bool:
    """Two words or more, on one picture only."""
    return sharing[text_key(caption)] == 1 and sum(len(word) > 1 for word in words_of(caption)) >= 2


def _without_near_twins(eligible: list[Picture], pictures: list[Picture]) -> list[Picture]:
    """Those whose thumbnail is farther than NEAR_TWIN_DISTANCE from that of every other picture."""
    if not eligible:
        return []
    everyone, own = _thumbnails(pictures), _thumbnails(eligible)  # [N, 768] and [E, 768]
    squares = np.square(own).sum(axis=1)[:, None] - 2 * own @ everyone.T + np.square(everyone).sum(axis=1)
    near = (squares / own.shape[1] < NEAR_TWIN_DISTANCE**2).sum(axis=1)
    return [picture for picture, count in zip(eligible, near, strict=True) if count == 1]  # itself


def _thumbnails(pictures: list[Picture]) -> NDArray[np.float64]:
    return np.stack([picture.thumbnail for picture in pictures if picture.thumbnail is not None]).astype(np.float64)


def shuffled(picture: Picture) -> str:
    """A sort key without any order in it, the same on every machine."""
    return hashlib.sha256(picture.name.encode()).hexdigest()
