"""Write the drawn world: pictures, pair list, Karpathy JSON, contrast pairs and reference scores, in the formats of real life.

pictures/train|val|test/000123.jpg
pairs.parquet, pairs.tsv   training: url, caption, source; some URLs and captions are bad, as on the web
karpathy.json              validation and test: 5 captions a picture; paths are relative to pictures/
contrast/<kind>.json       test: a true caption and one made false by a swap (SugarCrepe's format); names relative to pictures/
baselines.json             what an all-knowing and a near-blind reader score on the test split
world.json                 what is in here, counted; written last
"""

import functools
import json
import logging
import random
import re
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from pipeline.app.scenes.baselines import retrieval_baselines
from pipeline.app.scenes.captions import Caption, held_out_captions
from pipeline.app.scenes.config import ScenesConfig
from pipeline.app.scenes.contrast import KINDS, contrast_pairs
from pipeline.app.scenes.draw import Painter, to_jpeg
from pipeline.app.scenes.noise import SOURCES, broken_pictures, noisy_captions, url
from pipeline.app.scenes.parallel import as_finished
from pipeline.app.scenes.world import Split, World, make_world
from pipeline.core import storage
from pipeline.core.run_directory import fingerprint

logger = logging.getLogger(__name__)

PART_SIZE = 500  # pictures a process draws before it marks them as done
Row = tuple[str, str, str, str]  # url, caption, source, noise


@dataclass(frozen=True)
class Part:
    """Pictures [start, stop) of a split: the unit of work that is done once."""

    split: Split
    start: int
    stop: int

    def marker(self, out: Path) -> Path:
        return out / ".parts" / f"{self.split}-{self.start:07d}.json"


def write_world(config: ScenesConfig, out: Path) -> dict[str, Any]:
    """Write the world into `out` and return what `world.json` says.

    The same settings give the same bytes, however many processes draw. Called again after an interruption it draws only
    the missing parts; called again on a finished world it does nothing; a world of other settings is replaced.
    """
    settings = world_settings(config)
    found = _read_json(out / "world.json")
    if found is not None and found["fingerprint"] == fingerprint(settings):
        return found
    parts = _parts(config)
    _draw_missing(config, parts, out)
    world = make_world(config.seed, config.validation, config.test)
    held_out = {split: _held_out_captions(world, split) for split in world.held_out}
    rows = [row for part in parts if part.split == "train" for row in json.loads(part.marker(out).read_text())["rows"]]
    _write_pairs(config, rows, out)
    _write_json(out / "karpathy.json", karpathy(held_out))
    for kind in KINDS:
        _write_json(out / "contrast" / f"{kind}.json", contrast_pairs(kind, world.held_out["test"], config.seed))
    _write_json(out / "baselines.json", retrieval_baselines(world.held_out["test"], held_out["test"]))
    record = {"fingerprint": fingerprint(settings), "settings": settings, **_counts(config, rows)}
    _write_json(out / "world.json", record)
    logger.info("scenes: %d training, %d validation and %d test pictures in %s", config.train, config.validation, config.test, out)
    return record


def world_settings(config: ScenesConfig) -> dict[str, Any]:
    """The settings the world's files depend on."""
    return config.model_dump(mode="json", include=set(ScenesConfig.model_fields) - {"processes", "standin"})


def _counts(config: ScenesConfig, rows: list[Row]) -> dict[str, Any]:
    faults = Counter(broken_pictures(config).values())
    return {
        "pictures": {"train": config.train, "val": config.validation, "test": config.test},
        "urls": {"good": config.train - faults.total(), **{fault: faults[fault] for fault in sorted(faults)}},
        "pairs": len(rows),
        "pairs_of_good_urls": sum("/broken/" not in row[0] for row in rows),
        "caption_noise": dict(sorted(Counter(row[3] or "none" for row in rows).items())),
    }


# --- pictures, drawn part by part by several processes


def _parts(config: ScenesConfig) -> list[Part]:
    sizes: dict[Split, int] = {"val": config.validation, "test": config.test, "train": config.train}
    return [Part(split, start, min(start + PART_SIZE, size)) for split, size in sizes.items() for start in range(0, size, PART_SIZE)]


def _draw_missing(config: ScenesConfig, parts: list[Part], out: Path) -> None:
    _make_room(fingerprint(world_settings(config)), out)
    missing = [part for part in parts if not part.marker(out).exists()]
    if not missing:
        return
    for _ in as_finished(functools.partial(_draw_part, config, out), missing, config.processes, "drawing scenes"):
        pass  # a part marks itself as done


def _make_room(wanted: str, out: Path) -> None:
    """Take away the pictures of other settings, and remember whose pictures are drawn from now on."""
    owner = out / ".parts" / "settings.json"
    if owner.exists() and json.loads(owner.read_text()) == wanted:
        return
    (out / "world.json").unlink(missing_ok=True)
    if owner.exists():
        shutil.rmtree(out / "pictures", ignore_errors=True)
        shutil.rmtree(out / ".parts")
    _write_json(owner, wanted)


@functools.cache
def _world_and_painter(seed: int, validation: int, test: int, picture_size: int) -> tuple[World, Painter]:
    return make_world(seed, validation, test), Painter(picture_size, seed)


def _draw_part(config: ScenesConfig, out: Path, part: Part) -> None:
    world, painter = _world_and_painter(config.seed, config.validation, config.test, config.picture_size)
    broken = broken_pictures(config) if part.split == "train" else {}
    folder = out / "pictures" / part.split
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for index in range(part.start, part.stop):
        scene = world.scene(part.split, index)
        assert (scene.description in world.taken) == (part.split != "train"), "a training scene repeats a held-out one"
        picture = painter.paint(scene, random.Random(f"{config.seed}/{part.split}/{index}/paint"))
        (folder / _name(index)).write_bytes(to_jpeg(picture, config.jpeg_quality))  # not atomic: what counts is the part's marker
        if part.split == "train":
            address = url(config, f"pictures/train/{_name(index)}", broken.get(index))
            source = SOURCES[index % len(SOURCES)]
            rows += [(address, caption.text, source, caption.noise) for caption in noisy_captions(world, index, config)]
    _write_json(part.marker(out), {"rows": rows})


def _name(index: int) -> str:
    return f"{index:06d}.jpg"


# --- files of captions


def _held_out_captions(world: World, split: Split) -> list[list[Caption]]:
    return [held_out_captions(scene, random.Random(f"{world.seed}/{split}/{index}/captions")) for index, scene in enumerate(world.held_out[split])]


def _write_pairs(config: ScenesConfig, rows: list[Row], out: Path) -> None:
    shuffled = random.Random(f"{config.seed}/pairs").sample(rows, len(rows))
    columns = {name: [row[place] for row in shuffled] for place, name in enumerate(("url", "caption", "source"))}
    with storage.atomic_write(str(out / "pairs.parquet")) as file:
        pyarrow.parquet.write_table(pyarrow.table(columns), file)
    lines = ["\t".join(columns), *("\t".join(row[:3]) for row in shuffled)]
    storage.write_bytes(str(out / "pairs.tsv"), ("\n".join(lines) + "\n").encode())


def karpathy(captions: dict[Split, list[list[Caption]]]) -> dict[str, Any]:
    """The captions of each picture of each split as Karpathy's JSON."""
    images: list[dict[str, Any]] = []
    sentid = 0
    for split, of_split in captions.items():
        for index, of_picture in enumerate(of_split):
            imgid = len(images)
            sentences = [
                {"raw": caption.text, "tokens": re.findall(r"\w+", caption.text.lower()), "imgid": imgid, "sentid": sentid + number}
                for number, caption in enumerate(of_picture)
            ]
            sentids = [sentence["sentid"] for sentence in sentences]
            sentid += len(sentences)
            images.append({"filepath": split, "filename": _name(index), "imgid": imgid, "split": split, "sentids": sentids, "sentences": sentences})
    return {"images": images, "dataset": "scenes"}


def _write_json(path: Path, value: Any) -> None:
    storage.write_bytes(str(path), json.dumps(value, indent=None if path.parent.name == ".parts" else 1).encode())


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    value: dict[str, Any] = json.loads(path.read_text())
    return value
