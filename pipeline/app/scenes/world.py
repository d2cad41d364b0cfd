"""The ground truth: scenes of one to four things on a background, and what is true of them."""

import random
from dataclasses import dataclass
from typing import Literal

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
SHAPES = ("circle", "square", "triangle", "star", "heart", "moon", "flower", "cross")
TEXTURES = ("plain", "striped", "dotted", "checkered")
SIZES = ("small", "medium", "large")
BACKGROUNDS = ("meadow", "beach", "night", "snow", "water", "wood")

RADIUS = {"small": 0.105, "medium": 0.15, "large": 0.205}  # half the bounding box, as a share of the picture's side
THINGS_WEIGHTS = {1: 1, 2: 4, 3: 4, 4: 2}  # one thing is rare: its few possible descriptions would soon be used up
TWIN_RATE = 0.15  # share of things that repeat the colour and shape of an earlier one, so that counting matters
MARGIN = 0.02  # free space around a thing
TRUE_BY = 0.10  # how far apart centres must be for a relation to be true ...
CLEAR_BY = 0.18  # ... and for a caption to say it

Split = Literal["train", "val", "test"]
Relation = Literal["left", "right", "above", "below"]


@dataclass(frozen=True, order=True)
class Thing:
    """One coloured shape; x and y of its centre as a share of the picture's side, from the top left."""

    colour: str
    shape: str
    texture: str
    size: str
    x: float
    y: float

    @property
    def looks(self) -> tuple[str, str, str, str]:
        return self.colour, self.shape, self.texture, self.size


@dataclass(frozen=True)
class Scene:
    """A background and what lies on it."""

    background: str
    things: tuple[Thing, ...]

    @property
    def description(self) -> tuple[str, tuple[tuple[str, str, str, str], ...]]:
        """Everything but the places: scenes with different descriptions differ in what can be seen, wherever it lies."""
        return self.background, tuple(sorted(thing.looks for thing in self.things))


Description = tuple[str, tuple[tuple[str, str, str, str], ...]]


def is_true(relation: Relation, first: Thing, second: Thing, by: float = TRUE_BY) -> bool:
    """Whether `first` is left of, right of, above or below `second` by more than a share of the picture's side."""
    right, down = second.x - first.x, second.y - first.y
    return {"left": right, "right": -right, "above": down, "below": -down}[relation] > by


def clear_relation(first: Thing, second: Thing) -> Relation | None:
    """The relation somebody would use for two things, or None when they lie diagonally or close."""
    right, down = second.x - first.x, second.y - first.y
    if max(abs(right), abs(down)) <= CLEAR_BY or min(abs(right), abs(down)) > 0.7 * max(abs(right), abs(down)):
        return None
    if abs(right) > abs(down):
        return "left" if right > 0 else "right"
    return "above" if down > 0 else "below"


def draw_scene(rng: random.Random, things: int | None = None) -> Scene:
    """A random scene whose things do not overlap."""
    count = things or rng.choices(list(THINGS_WEIGHTS), list(THINGS_WEIGHTS.values()))[0]
    while True:
        looks: list[tuple[str, str, str, str]] = []
        for _ in range(count):
            colour, shape = rng.choice(COLOURS), rng.choice(SHAPES)
            if looks and rng.random() < TWIN_RATE:
                colour, shape = rng.choice(looks)[:2]
            looks.append((colour, shape, rng.choice(TEXTURES), rng.choice(SIZES)))
        places = _places(rng, [RADIUS[look[3]] for look in looks])
        if places is not None:
            return Scene(rng.choice(BACKGROUNDS), tuple(Thing(*look, *place) for look, place in zip(looks, places, strict=True)))


def _places(rng: random.Random, radii: list[float], attempts: int = 40) -> list[tuple[float, float]] | None:
    """Centres of circles that do not overlap, or None when these radii found no room."""
    places: list[tuple[float, float]] = []
    for radius in radii:
        low, high = radius + MARGIN, 1 - radius - MARGIN
        for _ in range(attempts):
            x, y = round(rng.uniform(low, high), 4), round(rng.uniform(low, high), 4)
            if all((x - u) ** 2 + (y - v) ** 2 > (radius + other + MARGIN) ** 2 for (u, v), other in zip(places, radii, strict=False)):
                places.append((x, y))
                break
        else:
            return None
    return places


@dataclass(frozen=True)
class World:
    """All scenes of a seed; the held-out ones are drawn first, and training draws again whatever they already describe."""

    seed: int
    held_out: dict[Split, tuple[Scene, ...]]
    taken: frozenset[Description]

    def scene(self, split: Split, index: int) -> Scene:
        """Scene number `index` of a split; a training scene is a pure function of seed and index."""
        if split != "train":
            return self.held_out[split][index]
        for attempt in range(1_000):
            scene = draw_scene(random.Random(f"{self.seed}/train/{index}/{attempt}"))
            if scene.description not in self.taken:
                return scene
        raise AssertionError("the held-out scenes leave no room for training scenes")


def make_world(seed: int, validation: int, test: int) -> World:
    """Draw the held-out scenes, no two with the same description."""
    rng, taken = random.Random(f"{seed}/held-out"), set[Description]()
    held_out: dict[Split, tuple[Scene, ...]] = {}
    sizes: dict[Split, int] = {"test": test, "val": validation}
    for split, size in sizes.items():
        scenes: list[Scene] = []
        while len(scenes) < size:
            scene = draw_scene(rng)
            if scene.description not in taken:
                taken.add(scene.description)
                scenes.append(scene)
        held_out[split] = tuple(scenes)
    return World(seed, held_out, frozenset(taken))
