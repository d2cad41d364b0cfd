"""Captions in ordinary English: each is a claim about a scene and the words that state it."""

import random
from collections import Counter
from dataclasses import dataclass, replace

from pipeline.app.scenes.world import Relation, Scene, Thing, clear_relation, is_true

Looks = tuple[str | None, str | None, str | None, str | None]  # colour, shape, texture, size; None = not said

COLOUR_WORDS = {"red": ("red", "crimson"), "yellow": ("yellow", "golden"), "purple": ("purple", "violet"), "blue": ("blue",), "pink": ("pink", "rosy")}
SHAPE_WORDS = {
    "circle": ("circle", "disc", "ball"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "heart": ("heart",),
    "moon": ("moon", "crescent"),
    "flower": ("flower", "blossom"),
    "cross": ("cross", "plus sign"),
}
TEXTURE_WORDS = {"plain": ("plain", "solid"), "striped": ("striped", "stripy"), "dotted": ("dotted", "spotted"), "checkered": ("checkered", "checked")}
TEXTURE_TAILS = {"striped": "with stripes", "dotted": "with dots", "checkered": "in a checkered pattern"}
SIZE_WORDS = {"small": ("small", "little", "tiny"), "medium": ("medium", "middle-sized"), "large": ("large", "big", "huge")}
GROUND_WORDS = {
    "meadow": ("on a meadow", "on the grass", "in a green field"),
    "beach": ("on the beach", "on the sand", "on a sandy beach"),
    "night": ("in the night sky", "at night", "under a starry sky"),
    "snow": ("in the snow", "on snow", "on a snowy field"),
    "water": ("on the water", "in the sea", "on a lake"),
    "wood": ("on a wooden floor", "on wood", "on wooden planks"),
}
RELATION_WORDS: dict[Relation, tuple[str, ...]] = {
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
NUMBERS = ("no", "one", "two", "three", "four")
COMMON = 0.75  # how often the first, usual word is taken


@dataclass(frozen=True)
class Phrase:
    """`count` things that look like this, as `two small red stars`."""

    looks: Looks
    count: int = 1


@dataclass(frozen=True)
class Claim:
    """What a caption says; `relation` holds between the first two phrases, `total` counts all things."""

    phrases: tuple[Phrase, ...]
    background: str | None = None
    relation: Relation | None = None
    total: int | None = None


@dataclass(frozen=True)
class Caption:
    """A claim in words."""

    text: str
    claim: Claim


@dataclass(frozen=True)
class Detail:
    """How much a caption tells: chances that each kind of detail is said, and how many things at least."""

    things: int = 2
    all_things: float = 0.8
    texture: float = 0.3
    size: float = 0.2
    background: float = 0.85
    relation: float = 0.3
    total: float = 0.1
    colour: float = 1.0
    shape: float = 1.0


RICH = Detail()
LONELY = replace(RICH, texture=0.9, size=0.85, background=0.95, total=0.5)  # one thing alone needs more words to be told from others
SHORT = Detail(things=1, all_things=0.25, texture=0.25, size=0.15, background=0.5, relation=0.1, total=0.0, colour=0.9, shape=0.85)
SHORT_RATE = 0.25  # share of training captions that tell little, as on the web


def describe(scene: Scene, rng: random.Random, detail: Detail) -> Caption:
    """A true caption of the scene."""
    things = list(scene.things)
    rng.shuffle(things)
    told = len(things) if rng.random() < detail.all_things else rng.randint(min(detail.things, len(things)), len(things))
    told_looks = [_told(thing, rng, detail) for thing in things[:told]]
    background = scene.background if rng.random() < detail.background else None
    if told >= 2 and rng.random() < detail.relation and (pair := _pair(scene, things[:told], told_looks)) is not None:
        first, second, relation = pair
        others = [looks for place, looks in enumerate(told_looks) if place not in (first, second)]
        phrases = (Phrase(told_looks[first]), Phrase(told_looks[second]), *_merged(others))
        return say(Claim(phrases, background, relation), rng)
    total = told if told == len(things) and rng.random() < detail.total else None
    return say(Claim(_merged(told_looks), background, None, total), rng)


def held_out_captions(scene: Scene, rng: random.Random, count: int = 5) -> list[Caption]:
    """True, telling captions, no two the same."""
    captions: dict[str, Caption] = {}
    while len(captions) < count:
        caption = describe(scene, rng, RICH if len(scene.things) > 1 else LONELY)
        captions[caption.text] = caption
    return list(captions.values())


def training_caption(scene: Scene, rng: random.Random) -> Caption:
    """A true caption, now and then a terse one."""
    if rng.random() < SHORT_RATE:
        return describe(scene, rng, SHORT)
    return describe(scene, rng, RICH if len(scene.things) > 1 else LONELY)


def _told(thing: Thing, rng: random.Random, detail: Detail) -> Looks:
    colour = thing.colour if rng.random() < detail.colour else None
    shape = thing.shape if colour is None or rng.random() < detail.shape else None
    texture = thing.texture if rng.random() < detail.texture else None
    size = thing.size if rng.random() < detail.size * (0.3 if thing.size == "medium" else 1) else None
    return colour, shape, texture, size


def _merged(looks: list[Looks]) -> tuple[Phrase, ...]:
    return tuple(Phrase(look, count) for look, count in Counter(looks).items())


def fits(thing: Thing, looks: Looks) -> bool:
    """Whether the thing looks as said."""
    return all(said is None or said == seen for said, seen in zip(looks, thing.looks, strict=True))


def _pair(scene: Scene, things: list[Thing], looks: list[Looks]) -> tuple[int, int, Relation] | None:
    """The first two told things that nothing else in the scene can be mistaken for and that clearly stand in a relation."""
    unique = [place for place, look in enumerate(looks) if sum(fits(thing, look) for thing in scene.things) == 1]
    for first in unique:
        for second in unique:
            if first != second and (relation := clear_relation(things[first], things[second])) is not None:
                return first, second, relation
    return None


def holds(claim: Claim, scene: Scene) -> bool:
    """Whether the claim is true of the scene: each phrase finds its own things, and everything else said is so."""
    if claim.background not in (None, scene.background) or claim.total not in (None, len(scene.things)):
        return False
    slots = [phrase.looks for phrase in claim.phrases for _ in range(phrase.count)]

    def assign(chosen: tuple[Thing, ...]) -> bool:
        if len(chosen) == len(slots):
            return claim.relation is None or is_true(claim.relation, chosen[0], chosen[1])
        return any(assign((*chosen, thing)) for thing in scene.things if thing not in chosen and fits(thing, slots[len(chosen)]))

    return assign(())


# --- words


def say(claim: Claim, rng: random.Random, common: float = COMMON) -> Caption:
    """Put a claim into words; with `common` 1 (no synonyms), claims of one form get the same sentence from the same random state."""
    nouns = [_noun_phrase(phrase, rng, common) for phrase in claim.phrases]
    ground = _word(GROUND_WORDS[claim.background], rng, common) if claim.background else ""
    sentence = _related(claim, nouns, ground, rng) if claim.relation else _listed(claim, nouns, ground, rng)
    text = " ".join(sentence.split()).replace(" ,", ",")
    if rng.random() < 0.3:
        text = text[0].upper() + text[1:] + rng.choice((".", ""))
    return Caption(text, claim)


def _related(claim: Claim, nouns: list[str], ground: str, rng: random.Random) -> str:
    assert claim.relation is not None
    relation = rng.choice(RELATION_WORDS[claim.relation])
    rest = f"and {_list(nouns[2:])}" if len(nouns) > 2 else ""
    return rng.choice(
        (
            f"{nouns[0]} {relation} {nouns[1]} {rest} {ground}",
            f"{nouns[0]} is {relation} {nouns[1]} {', with ' + _list(nouns[2:]) if rest else ''} {ground}",
            f"{ground + ', ' if ground else ''}{nouns[0]} {relation} {nouns[1]} {rest}",
        )
    )


def _listed(claim: Claim, nouns: list[str], ground: str, rng: random.Random) -> str:
    things = _list(nouns)
    many = len(claim.phrases) > 1 or claim.phrases[0].count > 1
    if claim.total == 1:
        return f"{rng.choice(('just', 'only', 'nothing but'))} {things} {ground}"
    if claim.total is not None:
        return rng.choice((f"{NUMBERS[claim.total]} things {ground}: {things}", f"only {things} {ground}"))
    verb = "are" if claim.phrases[0].count > 1 else "is"
    return rng.choices(
        (
            f"{things} {ground}",
            f"{ground + ', ' if ground else ''}{things}",
            f"there {verb} {things} {ground}",
            f"a picture of {things} {ground}",
            f"{things} together {ground}" if many else f"{things} {ground}",
        ),
        (5, 2, 1, 1, 1),
    )[0]


def _list(nouns: list[str]) -> str:
    return nouns[0] if len(nouns) == 1 else f"{', '.join(nouns[:-1])} and {nouns[-1]}"


def _noun_phrase(phrase: Phrase, rng: random.Random, common: float) -> str:
    colour, shape, texture, size = phrase.looks
    tail = ""
    words = [_word(SIZE_WORDS[size], rng, common)] if size else []
    if texture:
        if rng.random() < 0.2:
            tail = TEXTURE_TAILS.get(texture, "")
        if not tail:
            words.append(_word(TEXTURE_WORDS[texture], rng, common))
    if colour:
        words.append(_word(COLOUR_WORDS.get(colour, (colour,)), rng, common))
    noun = _word(SHAPE_WORDS[shape], rng, common) if shape else "thing"
    words.append(noun if phrase.count == 1 else _plural(noun))
    if tail:
        words.append(tail)
    article = NUMBERS[phrase.count] if phrase.count > 1 else ("an" if words[0][0] in "aeiou" else "a")
    return " ".join((article, *words))


def _plural(noun: str) -> str:
    return noun + ("es" if noun.endswith(("s", "x")) else "s")


def _word(words: tuple[str, ...], rng: random.Random, common: float) -> str:
    """The usual word with chance `common`; always two random draws, whichever words there are."""
    usual, other = rng.random() < common, rng.random()
    return words[0] if usual or len(words) == 1 else words[1 + int(other * (len(words) - 1))]
