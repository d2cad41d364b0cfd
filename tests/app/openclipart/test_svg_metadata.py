"""Dublin Core out of SVGs, as authors and their programs left it."""

from pathlib import Path

import pytest

from pipeline.app.openclipart.svg_metadata import SvgMetadata, read_svg_metadata

WORK = """<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns:cc="http://web.resource.org/cc/" xmlns:dc="http://purl.org/dc/elements/1.1/">
<cc:Work rdf:about="">{}</cc:Work></rdf:RDF>"""


def svg(work: str, prologue: str = "") -> bytes:
    return f'<?xml version="1.0"?>{prologue}<svg xmlns="http://www.w3.org/2000/svg"><metadata>{WORK.format(work)}</metadata></svg>'.encode()


def test_title_description_and_keywords_are_read_with_white_space_squeezed() -> None:
    work = """<dc:title> Red
      apple </dc:title><dc:description>An apple &amp; its leaf.</dc:description>
      <dc:subject><rdf:Bag><rdf:li>fruit</rdf:li><rdf:li></rdf:li><rdf:li>food</rdf:li></rdf:Bag></dc:subject>"""
    assert read_svg_metadata(svg(work)) == SvgMetadata("Red apple", "An apple & its leaf.", ["fruit", "food"])


def test_the_names_of_people_are_not_titles() -> None:
    work = "<dc:creator><cc:Agent><dc:title>Jane Doe</dc:title></cc:Agent></dc:creator><dc:title>Pear</dc:title>"
    assert read_svg_metadata(svg(work)).title == "Pear"


def test_a_drawing_without_metadata_has_none() -> None:
    assert read_svg_metadata(b"<svg><title>not Dublin Core</title></svg>") == SvgMetadata()


def test_namespace_entities_as_illustrator_writes_them_are_fine() -> None:
    prologue = '<!DOCTYPE svg [<!ENTITY ns_svg "http://www.w3.org/2000/svg">]>'
    assert read_svg_metadata(svg("<dc:title>Plum</dc:title>", prologue)).title == "Plum"


@pytest.mark.parametrize(
    "entities",
    [
        '<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">',
        f'<!ENTITY b "{"ha" * 5000}">',
        '<!ENTITY % a "ha"><!ENTITY b "%a;">',
    ],
)
def test_entities_that_could_grow_are_refused(entities: str) -> None:
    with pytest.raises(ValueError):
        read_svg_metadata(svg("<dc:title>&b;</dc:title>", f"<!DOCTYPE svg [{entities}]>"))


def test_external_entities_are_never_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    metadata = read_svg_metadata(svg("<dc:title>x&file;y</dc:title>", f'<!DOCTYPE svg [<!ENTITY file SYSTEM "file://{secret}">]>'))
    assert metadata.title == "xy"


@pytest.mark.parametrize("damaged", [b"", b"not xml", b"<svg><metadata>", b"\x89PNG\r\n", b'<?xml version="1.0" encoding="klingon"?><svg/>', svg("<dc:title>")])
def test_what_is_not_well_formed_is_a_value_error_in_one_line(damaged: bytes) -> None:
    with pytest.raises(ValueError, match=r"^not well-formed: [^\n]+$"):
        read_svg_metadata(damaged)
