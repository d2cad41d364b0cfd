import hashlib
import json
import random
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet
import pytest

from pipeline.app.scenes.captions import held_out_captions, holds, training_caption
from pipeline.app.scenes.config import ScenesConfig
from pipeline.app.scenes.contrast import KINDS, contrast_pairs
from pipeline.app.scenes.draw import PAINT, Painter
from pipeline.app.scenes.world import Scene, Thing, make_world
from pipeline.app.scenes.write import write_world

SMALL = ScenesConfig(seed=3, train=600, validation=8, test=12, picture_size=48, bad_url_rate=0.05, processes=2)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("world")
    write_world(SMALL, out)
    return out


def digests(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_same_settings_give_the_same_bytes_whatever_number_of_processes(world: Path, tmp_path: Path) -> None:
    write_world(SMALL.model_copy(update={"processes": 1}), tmp_path)
    assert digests(tmp_path) == digests(world)


def test_a_world_interrupted_between_parts_is_completed_without_drawing_the_finished_parts_again(world: Path, tmp_path: Path) -> None:
    write_world(SMALL, tmp_path)
    (tmp_path / "world.json").unlink()
    (tmp_path / ".parts" / "train-0000500.json").unlink()
    missing, finished = tmp_path / "pictures/train/000550.jpg", tmp_path / "pictures/train/000001.jpg"
    missing.write_bytes(b"half a pict")
    before = finished.stat().st_mtime_ns
    write_world(SMALL, tmp_path)
    assert digests(tmp_path) == digests(world)
    assert finished.stat().st_mtime_ns == before


def test_a_finished_world_is_left_alone(world: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in world.rglob("*")}
    assert write_world(SMALL, world)["pairs"] == 4 * SMALL.train
    assert {path: path.stat().st_mtime_ns for path in world.rglob("*")} == before


def test_a_world_of_other_settings_is_replaced_without_leftovers(tmp_path: Path) -> None:
    tiny = SMALL.model_copy(update={"train": 20, "processes": 1})
    write_world(tiny, tmp_path / "first")
    write_world(tiny.model_copy(update={"train": 10, "seed": 4}), tmp_path / "second")
    write_world(tiny, tmp_path / "second")
    assert digests(tmp_path / "second") == digests(tmp_path / "first")


def test_another_seed_gives_another_world(world: Path, tmp_path: Path) -> None:
    write_world(SMALL.model_copy(update={"seed": 4, "train": 10, "processes": 1}), tmp_path)
    assert (tmp_path / "pictures/test/000000.jpg").read_bytes() != (world / "pictures/test/000000.jpg").read_bytes()


def test_the_pair_list_is_the_same_as_parquet_and_as_tsv_with_its_stray_quotes(world: Path) -> None:
    table = pyarrow.parquet.read_table(world / "pairs.parquet").to_pylist()
    header, *lines = (world / "pairs.tsv").read_text().splitlines()
    assert [dict(zip(header.split("\t"), line.split("\t"), strict=True)) for line in lines] == table
    assert any(row["caption"].count('"') == 1 for row in table)


def test_bad_urls_are_as_many_as_recorded_and_name_their_fault(world: Path) -> None:
    record = json.loads((world / "world.json").read_text())
    urls = set(pyarrow.parquet.read_table(world / "pairs.parquet").column("url").to_pylist())
    faults = [address.split("/broken/")[1].split("/")[0] for address in urls if "/broken/" in address]
    counted = {"good": len(urls) - len(faults), **{fault: faults.count(fault) for fault in ("404", "truncated", "html", "slow")}}
    assert counted == record["urls"]
    assert len(faults) == round(SMALL.bad_url_rate * SMALL.train)
    for address in urls:
        served = address.removeprefix(f"{SMALL.base_url}/").removeprefix("pictures/")
        path = served.split("/", 2)[2] if served.startswith("broken/") else served  # broken/<fault>/<path>
        assert (world / "pictures" / path).exists()


def test_noise_comes_at_about_the_rate_asked_for(world: Path) -> None:
    record = json.loads((world / "world.json").read_text())
    for kind in ("wrong", "vague", "duplicate"):
        assert record["caption_noise"][kind] / record["pairs"] == pytest.approx(0.03, abs=0.012)


def test_held_out_scenes_share_no_description_with_training_or_each_other() -> None:
    held_out = make_world(0, 250, 250)
    descriptions = [scene.description for split in ("val", "test") for scene in held_out.held_out[split]]  # type: ignore[index]
    assert len(set(descriptions)) == 500
    assert not set(descriptions) & {held_out.scene("train", index).description for index in range(4_000)}


def test_karpathy_json_has_five_captions_a_picture_and_ids_that_add_up(world: Path) -> None:
    images = json.loads((world / "karpathy.json").read_text())["images"]
    assert [image["split"] for image in images].count("val") == SMALL.validation
    assert [image["split"] for image in images].count("test") == SMALL.test
    assert [image["imgid"] for image in images] == list(range(len(images)))
    assert [sentid for image in images for sentid in image["sentids"]] == list(range(5 * len(images)))
    for image in images:
        assert (world / "pictures" / image["filepath"] / image["filename"]).exists()
        assert [sentence["sentid"] for sentence in image["sentences"]] == image["sentids"]
        assert len({sentence["raw"] for sentence in image["sentences"]}) == 5


def words_without_articles(text: str) -> list[str]:
    return [word for word in text.lower().rstrip(".").split() if word not in ("a", "an")]


def test_contrast_captions_differ_by_one_swap_of_words_and_the_forms_are_balanced() -> None:
    scenes = make_world(0, 10, 200).held_out["test"]
    for kind in KINDS:
        pairs = contrast_pairs(kind, scenes, seed=0).values()
        assert len(pairs) == 200
        for pair in pairs:
            true, false = (words_without_articles(pair[key]) for key in ("caption", "negative_caption"))
            assert true != false
            swapped = [{"left": "right", "right": "left"}.get(word, word) for word in true] if kind == "swap_left_right" else true
            assert sorted(swapped) == sorted(false)
    left = sum(" left of " in pair["caption"] for pair in contrast_pairs("swap_left_right", scenes, seed=0).values())
    assert 60 < left < 140


def test_colours_stay_apart_when_pictures_are_scaled_to_64_px() -> None:
    painter = Painter(128)
    seen = {}
    for colour in PAINT:
        picture = painter.paint(Scene("wood", (Thing(colour, "circle", "plain", "small", 0.5, 0.5),)), random.Random(1))
        seen[colour] = cv2.resize(picture, (64, 64), interpolation=cv2.INTER_AREA)[31:34, 31:34].reshape(-1, 3).mean(axis=0)
    for colour, rgb in seen.items():
        assert min(PAINT, key=lambda name: float(np.linalg.norm(np.array(PAINT[name]) - rgb))) == colour


def test_every_true_caption_of_a_scene_holds_and_a_caption_of_another_rarely_does() -> None:
    world = make_world(1, 20, 20)
    others = 0
    for index in range(300):
        scene, rng = world.scene("train", index), random.Random(index)
        captions = [*held_out_captions(scene, rng), training_caption(scene, rng)]
        assert all(holds(caption.claim, scene) for caption in captions)
        others += sum(holds(caption.claim, world.scene("train", index + 1)) for caption in captions)
    assert others < 20
