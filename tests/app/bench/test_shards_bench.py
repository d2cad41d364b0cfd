"""`albef bench shards` in small: the peer does what ALBEF does, both sides see the same pictures, and the rows have their shape. How fast, no test says."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from pipeline.app import cli
from pipeline.app.bench import albef_reading, our_reading, shards
from pipeline.app.bench.photo_shards import LARGE, SMALL, PhotoShards, Sizes, photo_shards, repeated
from pipeline.core.errors import ConfigError
from shards.dataset import Dataset
from shards.pixels.randaugment import OPERATIONS, RandAugment

PICTURES = 128


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def photos(work: Path) -> PhotoShards:
    return photo_shards(work, SMALL, PICTURES)


@pytest.mark.parametrize("sizes", [SMALL, LARGE])
def test_pictures_are_jpegs_with_sides_and_bits_of_photographs(tmp_path: Path, sizes: Sizes) -> None:
    made = photo_shards(tmp_path, Sizes(sizes.name, sizes.short_sides, 4), 6)
    dataset = Dataset.open(str(made.folder))
    pictures = [Image.open(io.BytesIO(dataset.read(sample).image)) for sample in range(6)]
    assert all(sizes.short_sides[0] <= min(picture.size) <= sizes.short_sides[1] for picture in pictures)
    assert {picture.format for picture in pictures} == {"JPEG"}
    assert 1.5 < made.bits_per_pixel < 4
    assert dataset.read(4).image == dataset.read(0).image, "four are distinct"
    assert photo_shards(tmp_path, Sizes(sizes.name, sizes.short_sides, 4), 6) == made


def test_a_repeated_dataset_has_the_samples_asked_for_in_links(photos: PhotoShards) -> None:
    folder = repeated(photos, 5 * PICTURES)
    dataset = Dataset.open(str(folder))
    assert dataset.num_samples == 5 * PICTURES
    assert dataset.read(4 * PICTURES).image == dataset.read(0).image
    assert {path.stat().st_ino for path in folder.glob("*.tar")} == {path.stat().st_ino for path in photos.folder.glob("*.tar")}


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_peers_operations_are_albefs(photos: PhotoShards, name: str) -> None:
    picture = np.array(Image.open(io.BytesIO(Dataset.open(str(photos.folder)).read(0).image)).resize((256, 256)))
    for sign in (-1, 1):
        theirs, ours = albef_reading.OPERATIONS[name](picture, sign), RandAugment().apply(picture, [(name, sign)])
        assert (np.abs(theirs.astype(int) - ours) > 4).mean() < 1e-3
    assert set(albef_reading.OPERATIONS) == set(OPERATIONS)


def test_both_sides_make_the_same_kind_of_batch_of_the_same_pictures(photos: PhotoShards) -> None:
    theirs, captions = next(iter(albef_reading.augmented(photos.urls, our_reading.RESOLUTION)))
    dataset = Dataset.open(str(photos.folder))
    ours = next(our_reading.batches_from(our_reading.loader_of(dataset, our_reading.augmenting(), our_reading.float_batch)))
    assert ours.shape == theirs.shape == (albef_reading.BATCH, 3, 256, 256)
    assert ours.dtype == theirs.dtype
    assert set(captions) <= {dataset.read(sample).captions[0] for sample in range(PICTURES)}
    assert abs(float(ours.mean() - theirs.mean())) < 0.2
    assert abs(float(ours.std() - theirs.std())) < 0.2


def test_skipping_starts_at_the_sample_it_is_told(photos: PhotoShards) -> None:
    _, captions = next(albef_reading.skipped(photos.urls, 120, 32))
    assert list(captions) == [Dataset.open(str(photos.folder)).read(sample).captions[0] for sample in range(120, 128)]


def test_the_command_writes_the_rows_it_measured(work: Path, photos: PhotoShards, tmp_path: Path) -> None:
    cases = "tar-walk,decode-small,augment-small,uint8-small"
    arguments = ["shards", "--cases", cases, "--pictures", str(PICTURES), "--rounds", "1", "--json", str(tmp_path / "rows.json"), "--work", str(work)]
    result = CliRunner().invoke(cli.bench_app, arguments)
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "rows.json").read_text())
    assert record["name"] == "shards"
    assert [row["case"] for row in record["rows"]] == ["tar-walk", "tar-read", "decode-small", "augment-small", "uint8-small"]
    assert all(row["ours"] > 0 and row["peer"] > 0 and row["ratio"] > 0 and "bits/pixel" in row["note"] for row in record["rows"])


def test_the_cost_of_timing_is_a_small_share(work: Path, photos: PhotoShards) -> None:
    (row,) = shards.run(["stage-timing"], shards.Scale(PICTURES, 1, work))
    assert 0 < row.ours < 5


@pytest.mark.slow
@pytest.mark.parametrize(("case", "with_peer", "alone"), [("s3-walk", 1, 1), ("s3-augment", 1, 0), ("scaling", 0, 6)])
def test_cases_with_servers_and_processes_give_rows(work: Path, photos: PhotoShards, case: str, with_peer: int, alone: int) -> None:
    rows = shards.run([case], shards.Scale(PICTURES, 1, work))
    assert all(row.ours > 0 for row in rows)
    assert [row.peer is None for row in rows] == [False] * with_peer + [True] * alone


def test_the_first_batch_is_timed_at_three_places(work: Path, photos: PhotoShards, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "EPOCH_SAMPLES", 20 * PICTURES)
    rows = shards.run(["first-batch"], shards.Scale(PICTURES, 1, work))
    assert [row.case for row in rows] == ["first-batch 0%", "first-batch 50%", "first-batch 90%", "first-batch spread"]
    assert rows[-1].ours >= 1


def test_a_case_that_does_not_exist_is_named(work: Path) -> None:
    with pytest.raises(ConfigError, match="--cases tar-wakl: no such case; there are tar-walk, decode-small"):
        shards.run(["tar-wakl"], shards.Scale(PICTURES, 1, work))
