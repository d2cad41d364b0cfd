"""Configuration: strict keys, overrides, and errors a stranger can act on."""

from pathlib import Path

import pytest
from pydantic import Field

from pipeline.core import config
from pipeline.core.errors import ConfigError


class Inner(config.Section):
    size: int = Field(3, ge=1, description="width in cells")


class Outer(config.Section):
    name: str = Field(description="what it is called")
    inner: Inner = Field(Inner(), description="its inside")


def written(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text)
    return path


def test_overrides_replace_values_of_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "name: box\ninner: {size: 4}\n")
    assert config.load(Outer, path, ["inner.size=7", "name=crate"]) == Outer(name="crate", inner=Inner(size=7))


def test_an_unknown_key_is_named_in_full_with_the_likely_one(tmp_path: Path) -> None:
    path = written(tmp_path, "name: box\ninner: {sise: 4}\n")
    with pytest.raises(ConfigError, match=r"unknown key inner\.sise; did you mean size\?"):
        config.load(Outer, path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("inner: {size: 4}", r"name is missing"),
        ("name: box\ninner: {size: 0}", r"inner\.size is 0: .*greater than or equal to 1"),
        ("name: [", r"not valid YAML"),
        ("just words", r"expected sections with keys"),
    ],
)
def test_a_mistake_in_the_file_is_one_line_with_its_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        config.load(Outer, written(tmp_path, text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("override", ["inner.size", "=3", "name.deep=3"])
def test_an_override_that_is_not_one_is_refused(tmp_path: Path, override: str) -> None:
    with pytest.raises(ConfigError, match="override"):
        config.load(Outer, written(tmp_path, "name: box"), [override])


def test_a_missing_file_says_where_ours_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="pipeline/configs"):
        config.load(Outer, tmp_path / "absent.yaml")


def test_the_dumped_configuration_loads_to_the_same_value(tmp_path: Path) -> None:
    value = Outer(name="box", inner=Inner(size=9))
    assert config.load(Outer, written(tmp_path, config.dump(value))) == value


def test_the_reference_lists_every_key_with_its_default() -> None:
    assert list(config.reference(Outer)) == [("name", "(required)", "what it is called"), ("inner.size", "3", "width in cells")]
