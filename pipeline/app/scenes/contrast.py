"""Pairs of captions that differ by one swap, in SugarCrepe's file format: which of the two is true?"""

import random
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations

from pipeline.app.scenes.captions import Claim, Phrase, holds, say
from pipeline.app.scenes.world import Scene, clear_relation

Pair = tuple[Claim, Claim]  # true, false


def contrast_pairs(kind: str, scenes: tuple[Scene, ...], seed: int) -> dict[str, dict[str, str]]:
    """About one pair a scene, in SugarCrepe's format; scenes that allow none are made up for by second pairs of others.

    Both captions use the same template and words, and each form is as often the true one, so a reader that sees no
    picture can do no better than guess.
    """
    rng = random.Random(f"{seed}/contrast/{kind}")
    candidates = [rng.sample(pairs, len(pairs)) for pairs in (KINDS[kind](scene) for scene in scenes)]
    found: dict[str, dict[str, str]] = {}
    for turn in range(max(map(len, candidates), default=0)):
        for index, pairs in enumerate(candidates):
            if turn < len(pairs) and len(found) < len(scenes):
                true, false = pairs[turn]
                assert holds(true, scenes[index])
                assert not holds(false, scenes[index])
                words = rng.getrandbits(64)  # the same words for both
                caption, negative = (say(claim, random.Random(words), common=1.0).text for claim in (true, false))
                found[str(len(found))] = {"filename": f"test/{index:06d}.jpg", "caption": caption, "negative_caption": negative}
    return found


def _swap_colour(scene: Scene) -> list[Pair]:
    """Two things exchange their colours."""
    pairs = []
    for first, second in permutations(scene.things, 2):
        if first.colour != second.colour and first.shape != second.shape:
            true = _two(scene, (first.colour, first.shape), (second.colour, second.shape))
            false = _two(scene, (second.colour, first.shape), (first.colour, second.shape))
            pairs.append((true, false))
    return [(true, false) for true, false in pairs if not holds(false, scene)]


def _two(scene: Scene, *looks: tuple[str, str]) -> Claim:
    return Claim(tuple(Phrase((colour, shape, None, None)) for colour, shape in looks), scene.background)


def _swap_left_right(scene: Scene) -> list[Pair]:
    """Left becomes right and right becomes left."""
    pairs = []
    for first, second in permutations(scene.things, 2):
        relation = clear_relation(first, second)
        if relation in ("left", "right"):
            true = replace(_two(scene, (first.colour, first.shape), (second.colour, second.shape)), relation=relation)
            pairs.append((true, replace(true, relation="right" if relation == "left" else "left")))
    return [(true, false) for true, false in pairs if not holds(false, scene)]


KINDS: dict[str, Callable[[Scene], list[Pair]]] = {"swap_colour": _swap_colour, "swap_left_right": _swap_left_right}
