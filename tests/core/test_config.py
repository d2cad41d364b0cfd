"""Configuration: strict keys, overrides, and errors a stranger can act on."""

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, model_validator

from pipeline.core import config
from pipeline.core.errors import ConfigError


class Inner(config.Section):
    size: int = Field(3, ge=1, description="width in cells")
    step: int = Field(1, description="divides the width")

    @model_validator(mode="after")
    def _step_fits(self) -> "Inner":
        if self.size % self.step:
            raise ValueError(f"size {self.size} is not a multiple of step {self.step}")
        return self


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
        ("name: box\ninner: {size: 0}", r"inner\.size is 0: should be greater than or equal to 1"),
        ("name: box\ninner: {step: 2}", r"run\.yaml: inner: size 3 is not a multiple of step 2$"),
        ("name: [", r"not valid YAML"),
        ("just words", r"expected sections with keys"),
    ],
)
def test_a_mistake_in_the_file_is_one_line_with_its_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        config.load(Outer, written(tmp_path, text))
    assert "\n" not in str(caught.value)


class Meal(config.Section):
    parts: dict[str, dict[str, Any] | None] = Field({"soup": None, "bread": {"slices": 2}}, description="what is served, with options")


@pytest.mark.parametrize(
    ("text", "override", "parts"),
    [
        ("{}", "parts.soup.litres=1", {"soup": {"litres": 1}, "bread": {"slices": 2}}),
        ("{}", "parts.bread.slices=3", {"soup": None, "bread": {"slices": 3}}),
        ("parts: {soup: null}", "parts.bread.slices=3", {"soup": None, "bread": {"slices": 3}}),
        ("parts: {soup: {hot: true}}", "parts.soup.litres=1", {"soup": {"hot": True, "litres": 1}}),
        ("{}", "parts={soup: null}", {"soup": None}),
    ],
)
def test_an_override_of_one_key_leaves_the_others_as_the_file_or_else_the_default_has_them(
    tmp_path: Path, text: str, override: str, parts: dict[str, Any]
) -> None:
    assert config.load(Meal, written(tmp_path, text), [override]).parts == parts
    assert Meal().parts == {"soup": None, "bread": {"slices": 2}}


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
    assert list(config.reference(Outer)) == [
        ("name", "(required)", "what it is called"),
        ("inner.size", "3", "width in cells"),
        ("inner.step", "1", "divides the width"),
    ]


class Shape(config.Section):
    colour: str = Field("red", description="what it looks like")


class Circle(Shape):
    type: Literal["circle"] = Field(description="round")
    radius: int = Field(ge=1, description="in cells")


class Box(Shape):
    type: Literal["box"] = Field(description="square")
    inner: Inner = Field(Inner(), description="its inside")


class Drawing(config.Section):
    shapes: list[Annotated[Circle | Box, Field(discriminator="type")]] = Field(description="what is drawn")


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"type": "circle", "radios": 1}, r"unknown key shapes\.1\.radios; did you mean radius\?"),
        ({"type": "circle", "inner": {}, "radius": 1}, r"unknown key shapes\.1\.inner; known here: colour, type, radius"),
        ({"type": "box", "inner": {"sise": 1}}, r"unknown key shapes\.1\.inner\.sise; did you mean size\?"),
        ({"type": "box", "inner": {"size": 0}}, r"shapes\.1\.inner\.size is 0: "),
        ({"type": "circle"}, r"shapes\.1\.radius is missing"),
        ({"type": "circel", "radius": 1}, r"shapes\.1\.type is 'circel', which does not exist; did you mean circle\?"),
        ({"type": "moon"}, r"shapes\.1\.type is 'moon', which does not exist; known here: circle, box"),
        ({"radius": 1}, r"shapes\.1\.type is missing; known: circle, box"),
        ("circle", r"shapes\.1 is 'circle': "),
    ],
)
def test_a_mistake_in_one_of_several_kinds_of_section_is_named_as_the_user_writes_it(shape: Any, message: str) -> None:
    values = {"shapes": [{"type": "box"}, shape]}
    with pytest.raises(ConfigError, match=message) as caught:
        config.validate(Drawing, values, "run.yaml")
    assert "\n" not in str(caught.value)


def test_the_reference_gives_what_several_kinds_of_section_share_once() -> None:
    assert list(config.reference(Drawing)) == [
        ("shapes.colour", "'red'", "what it looks like"),
        ("shapes[circle].type", "(required)", "round"),
        ("shapes[circle].radius", "(required)", "in cells"),
        ("shapes[box].type", "(required)", "square"),
        ("shapes[box].inner.size", "3", "width in cells"),
        ("shapes[box].inner.step", "1", "divides the width"),
    ]


def test_sections_of_a_union_are_dumped_and_load_to_the_same_value(tmp_path: Path) -> None:
    value = config.validate(Drawing, {"shapes": [{"type": "box", "inner": {"size": 4}}, {"type": "circle", "radius": 2}]}, "run.yaml")
    assert config.load(Drawing, written(tmp_path, config.dump(value))) == value


def test_an_override_can_change_one_element_of_a_list(tmp_path: Path) -> None:
    path = written(tmp_path, "shapes: [{type: box}, {type: circle, radius: 2}]\n")
    assert config.load(Drawing, path, ["shapes.1.radius=5", "shapes.0.inner.size=9"]).shapes == [
        Box(type="box", inner=Inner(size=9)),
        Circle(type="circle", radius=5),
    ]
    for override in ("shapes.2.radius=5", "shapes.first.radius=5", "shapes.radius=5", "shapes.-1.radius=3"):
        with pytest.raises(ConfigError, match=r"shapes is a list of 2; name one of its elements, shapes\.0 to shapes\.1"):
            config.load(Drawing, path, [override])


def test_a_file_with_a_base_says_only_what_differs(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "base.yaml").write_text("name: box\ninner: {size: 4}\n")
    (tmp_path / "middle.yaml").write_text("base: base.yaml\nname: crate\n")
    last = tmp_path / "deep" / "last.yaml"
    last.write_text("base: ../middle.yaml\ninner: {size: 5}\n")
    assert config.load(Outer, tmp_path / "middle.yaml") == Outer(name="crate", inner=Inner(size=4))
    assert config.load(Outer, last) == Outer(name="crate", inner=Inner(size=5))
    assert config.load(Outer, last, ["inner.size=6"]) == Outer(name="crate", inner=Inner(size=6))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: absent.yaml\n", "absent.yaml: no such configuration file .*run.yaml names it as its base"),
        ("base: run.yaml\n", "run.yaml: builds on itself"),
        ("base: [a, b]\n", "base is .*name another configuration file"),
    ],
)
def test_a_base_that_cannot_be_built_on_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        config.load(Outer, written(tmp_path, text))
    assert "\n" not in str(raised.value)
