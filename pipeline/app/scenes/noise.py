"""What the web does to captions and links: wrong, vague and repeated captions, stray quotes, dead and lying URLs."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.app.scenes.captions import training_caption
from pipeline.app.scenes.config import ScenesConfig
from pipeline.app.scenes.world import World

FAULTS = ("404", "truncated", "html", "slow")  # the first part of a broken URL's path tells the picture server what to do
SOURCES = ("album", "forum", "shop")
STRAY_QUOTE_RATE = 0.02  # captions with one quotation mark, which quoting readers of lists trip over
VAGUE: tuple[Callable[[random.Random], str], ...] = (
    lambda rng: f"IMG_{rng.randint(1000, 9999)}",
    lambda rng: f"dsc{rng.randint(1000, 9999)}.jpg",
    lambda _: "nice picture",
    lambda _: "click to enlarge",
    lambda _: "free wallpaper download",
    lambda _: "untitled",
    lambda rng: f'{rng.randint(5, 24)}" print',
    lambda _: 'my drawing "final version',
    lambda _: "new in our shop, order today!",
)


@dataclass(frozen=True)
class NoisyCaption:
    """A training caption, with what was done to it: "" (nothing), "wrong", "vague" or "duplicate"."""

    text: str
    noise: str


def noisy_captions(world: World, index: int, config: ScenesConfig) -> list[NoisyCaption]:
    """The captions of training picture `index`."""
    rng = random.Random(f"{config.seed}/captions/{index}")
    captions: list[NoisyCaption] = []
    for number in range(config.captions_per_picture):
        draw = rng.random()
        if draw < config.wrong_rate:
            captions.append(NoisyCaption(training_caption(world.scene("train", rng.randrange(config.train)), rng).text, "wrong"))
        elif draw < config.wrong_rate + config.vague_rate:
            captions.append(NoisyCaption(rng.choice(VAGUE)(rng), "vague"))
        elif number and draw < config.wrong_rate + config.vague_rate + config.duplicate_rate * _of_repeatable(config):
            captions.append(NoisyCaption(rng.choice(captions).text, "duplicate"))
        else:
            text = training_caption(world.scene("train", index), rng).text
            captions.append(NoisyCaption(f'"{text}' if rng.random() < STRAY_QUOTE_RATE else text, ""))
    return captions


def _of_repeatable(config: ScenesConfig) -> float:
    """The first caption has nothing to repeat; the others repeat more so that the share of all is as asked."""
    return config.captions_per_picture / (config.captions_per_picture - 1)


def broken_pictures(config: ScenesConfig) -> dict[int, str]:
    """Training pictures whose URL is broken, with the fault; the faults take turns."""
    rng = random.Random(f"{config.seed}/urls")
    broken = sorted(rng.sample(range(config.train), round(config.bad_url_rate * config.train)))
    return {index: FAULTS[place % len(FAULTS)] for place, index in enumerate(broken)}


def url(config: ScenesConfig, path: str, fault: str | None = None) -> str:
    """The URL of a picture `pictures/...`; with a fault, `/broken/<fault>/...` as the picture server understands it."""
    served = path if fault is None else f"broken/{fault}/{path.removeprefix('pictures/')}"
    return f"{config.base_url.rstrip('/')}/{served}"
