"""The configurations we ship are valid, and say what the paper's sets are made of."""

from pathlib import Path

import pytest

from ingest.config import IngestConfig
from pipeline.app.config import RunConfig
from pipeline.core.config import load

FOLDER = Path(__file__).parents[2] / "pipeline" / "configs"


def ingest_of(name: str) -> IngestConfig:
    ingest = load(RunConfig, FOLDER / name).ingest
    assert ingest is not None
    return ingest


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.name)
def test_a_shipped_configuration_is_valid_and_begins_with_its_command(path: Path) -> None:
    load(RunConfig, path)
    first_line = path.read_text().splitlines()[0]
    assert first_line.startswith("# albef ")
    assert first_line.endswith(f" pipeline/configs/{path.name}")


def test_the_14m_set_is_the_4m_set_and_conceptual_12m() -> None:
    four, fourteen = ingest_of("albef_4m.yaml"), ingest_of("albef_14m.yaml")
    assert fourteen.sources[:-1] == four.sources
    assert fourteen.sources[-1].type == "cc12m"
    assert fourteen.store == four.store
    pictures = [sum(source.paper_pictures or 0 for source in ingest.sources) for ingest in (four, fourteen)]
    assert [round(number / 1e6) for number in pictures] == [4, 14]


def test_web_pictures_are_stored_at_short_side_384_and_those_of_coco_and_visual_genome_as_they_are() -> None:
    ingest = ingest_of("albef_14m.yaml")
    assert (ingest.store.image_size, ingest.store.resize_mode, ingest.store.upscale, ingest.store.encode_quality) == (384, "keep_ratio", False, 95)
    kept = {source.label for source in ingest.sources if source.store is not None and source.store.resize_mode == "no"}
    assert kept == {source.label for source in ingest.sources if source.archive_files()} == {"coco", "visual_genome"}


def test_an_unquoted_no_of_yaml_means_that_pictures_keep_their_size(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("run: {folder: x}\ningest: {sources: [{type: tsv, path: x, store: {resize_mode: no}}], output: x}\n")
    ingest = load(RunConfig, path).ingest
    assert ingest is not None
    assert ingest.sources[0].store is not None
    assert ingest.sources[0].store.resize_mode == "no"
