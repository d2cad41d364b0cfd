"""The table of sources is what the configuration, its reference and the page about them say."""

from pathlib import Path
from typing import get_args

import pytest

from ingest.config import IngestConfig
from ingest.sources import SOURCES
from ingest.store import StoreConfig
from pipeline.core.config import reference, validate
from pipeline.core.errors import ConfigError

PAGE = (Path(__file__).parents[3] / "docs" / "sources.md").read_text()


@pytest.mark.parametrize(("name", "source"), SOURCES.items())
def test_a_source_goes_by_the_name_the_table_gives_it_and_each_of_its_options_is_described(name: str, source: type) -> None:
    assert get_args(source.model_fields["type"].annotation) == (name,)
    assert all(field.description for field in source.model_fields.values())
    assert f"| `{name}` |" in PAGE
    known = {key.removeprefix(f"sources[{name}].").split(".")[0] for key, _, _ in reference(IngestConfig) if key.startswith(f"sources[{name}].")}
    assert {"type", "path"} <= known
    for option in known - {"type", "path"}:
        assert f"`{option}`" in PAGE, f"docs/sources.md does not tell of {name}'s option {option}"


@pytest.mark.parametrize("name", SOURCES)
def test_every_kind_of_source_can_have_a_store_of_its_own(name: str) -> None:
    values = {"type": name, "path": "x", "store": {"image_size": 224}} | ({"images": "y"} if name == "visual_genome" else {})
    source = validate(IngestConfig, {"sources": [values], "output": "z"}, "run.yaml").sources[0]
    assert type(source) is SOURCES[name]
    assert source.store == StoreConfig(image_size=224)


def test_a_mistyped_option_or_type_of_a_source_is_named_with_the_likely_one() -> None:
    def message(**values: object) -> str:
        with pytest.raises(ConfigError) as caught:
            validate(IngestConfig, {"sources": [values], "output": "z"}, "run.yaml")
        return str(caught.value)

    assert message(type="coco", path="x", archive=["y"]) == "run.yaml: unknown key sources.0.archive; did you mean archives?"
    assert message(type="karpaty", path="x") == "run.yaml: sources.0.type is 'karpaty', which does not exist; did you mean karpathy?"
    assert "known: cc3m, cc12m, sbu, coco, karpathy, visual_genome, webdataset, parquet, jsonl, csv, tsv" in message(path="x")
