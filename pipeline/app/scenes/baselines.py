"""Reference scores of retrieval on the test split: a reader that knows the truth, one that sees background and count, and chance."""

from collections.abc import Sequence
from itertools import permutations
from math import comb
from typing import Any, Literal

import numpy as np

from pipeline.app.scenes.captions import Caption, Claim
from pipeline.app.scenes.world import BACKGROUNDS, COLOURS, SHAPES, SIZES, TEXTURES, Scene

Scores = np.ndarray[Any, np.dtype[np.float64]]  # [pictures, captions]
DEPTHS = (1, 5, 10)
MAX_THINGS = 4
WORDS = (COLOURS, SHAPES, TEXTURES, SIZES)
ALL_ORDERS = np.array(list(permutations(range(MAX_THINGS))))
WRONG = 4.0  # bits lost for each bit that is said and not so
UNSAID = 0.5  # bits lost for each thing the caption leaves out: captions mostly tell all


def retrieval_baselines(scenes: Sequence[Scene], captions: Sequence[Sequence[Caption]]) -> dict[str, dict[str, float]]:
    """Recalls in percent by name; captions[i] belong to scenes[i]."""
    owner = np.array([index for index, of_picture in enumerate(captions) for _ in of_picture])
    claims = [caption.claim for of_picture in captions for caption in of_picture]
    blind = np.zeros((len(scenes), len(claims)))
    return {
        "symbolic oracle": recalls(oracle_scores(scenes, claims), owner, ties="lost"),
        "background and count": recalls(background_and_count_scores(scenes, claims), owner, ties="drawn"),
        "chance": recalls(blind, owner, ties="drawn"),
    }


def oracle_scores(scenes: Sequence[Scene], claims: Sequence[Claim]) -> Scores:
    """How well each claim fits each scene's ground truth: bits said and true, minus bits said and wrong, minus what is left out."""
    looks = np.full((len(scenes), MAX_THINGS, len(WORDS)), -1)
    places = np.zeros((len(scenes), MAX_THINGS, 2))
    for row, scene in enumerate(scenes):
        for column, thing in enumerate(scene.things):
            looks[row, column] = [words.index(seen) for words, seen in zip(WORDS, thing.looks, strict=True)]
            places[row, column] = thing.x, thing.y
    backgrounds = np.array([BACKGROUNDS.index(scene.background) for scene in scenes])
    counts = np.array([len(scene.things) for scene in scenes])
    return np.stack([_fit(claim, looks, places, backgrounds, counts) for claim in claims], axis=1)


def _fit(claim: Claim, looks: Any, places: Any, backgrounds: Any, counts: Any) -> Any:
    """Fit of one claim to all scenes, [pictures]: the best way to give each thing said a thing seen."""
    slots = [phrase.looks for phrase in claim.phrases for _ in range(phrase.count)]
    fit = np.zeros((len(looks), len(ALL_ORDERS)))
    for slot, said in enumerate(slots):
        of_thing = np.zeros(looks.shape[:2])
        for attribute, (words, word) in enumerate(zip(WORDS, said, strict=True)):
            if word is not None:
                of_thing += _bits(looks[:, :, attribute] == words.index(word), len(words))
        fit += of_thing[:, ALL_ORDERS[:, slot]]
    if claim.relation is not None:
        axis = 0 if claim.relation in ("left", "right") else 1
        along = places[:, ALL_ORDERS[:, 1], axis] - places[:, ALL_ORDERS[:, 0], axis]
        fit += _bits((along if claim.relation in ("left", "above") else -along) > 0, 4)
    best = fit.max(axis=1)
    if claim.background is not None:
        best += _bits(backgrounds == BACKGROUNDS.index(claim.background), len(BACKGROUNDS))
    if claim.total is not None:
        best += _bits(counts == claim.total, MAX_THINGS)
    return best - UNSAID * np.abs(counts - len(slots))


def _bits(true: Any, choices: int) -> Any:
    return np.log2(choices) * np.where(true, 1.0, -WRONG)


def background_and_count_scores(scenes: Sequence[Scene], claims: Sequence[Claim]) -> Scores:
    """Fit of what can be told without seeing any thing clearly: the background, and how many things there are."""
    return np.array([[_background_and_count(scene, claim) for claim in claims] for scene in scenes])


def _background_and_count(scene: Scene, claim: Claim) -> float:
    said = sum(phrase.count for phrase in claim.phrases)
    background = 0.5 if claim.background is None else float(claim.background == scene.background)
    return 10 * background - abs(said - len(scene.things)) - (5 if said > len(scene.things) else 0)


def recalls(scores: Scores, owner: Any, ties: Literal["lost", "drawn"]) -> dict[str, float]:
    """TR and IR at 1, 5, 10 in percent; with equal scores the right one comes last ("lost") or anywhere ("drawn": the expectation)."""
    pictures = np.arange(scores.shape[0])
    own_captions = owner[None, :] == pictures[:, None]
    result = {f"text_recall@{k}": np.mean([_hit(row, own, k, ties) for row, own in zip(scores, own_captions, strict=True)]) for k in DEPTHS}
    result |= {f"image_recall@{k}": np.mean([_hit(row, own, k, ties) for row, own in zip(scores.T, own_captions.T, strict=True)]) for k in DEPTHS}
    return {name: round(100 * float(value), 2) for name, value in result.items()}


def _hit(scores: Any, right: Any, depth: int, ties: Literal["lost", "drawn"]) -> float:
    """Chance that at least one right candidate is among the `depth` best."""
    best = scores[right].max()
    above = int((scores > best).sum())
    if above >= depth:
        return 0.0
    equal = scores == best
    wrong_equal, right_equal = int((equal & ~right).sum()), int((equal & right).sum())
    if ties == "lost":
        return float(above + wrong_equal < depth)
    places = min(depth - above, wrong_equal + right_equal)
    return 1 - comb(wrong_equal, places) / comb(wrong_equal + right_equal, places)
