"""Title, description and keywords out of an SVG's Dublin Core metadata."""

from dataclasses import dataclass, field
from xml.parsers import expat

LONGEST_ENTITY = 200  # characters; Illustrator declares its namespace URLs as entities, nothing honest is longer


@dataclass
class SvgMetadata:
    """What an author wrote about a drawing, white space squeezed; empty where nothing was written."""

    title: str = ""
    description: str = ""
    keywords: list[str] = field(default_factory=list)


def read_svg_metadata(data: bytes) -> SvgMetadata:
    """Read `rdf:RDF/cc:Work` of an SVG file; the first title and description count.

    Nothing outside the file is ever opened (expat fetches no external entity unless told to), and an entity that refers to
    another one or is long is refused, so that a small file cannot grow into a large text.

    Raises:
        ValueError: not well-formed XML, or with such an entity; one line.
    """
    found = _Collector()
    parser = expat.ParserCreate()
    parser.StartElementHandler = found.start
    parser.EndElementHandler = found.end
    parser.CharacterDataHandler = found.text
    parser.EntityDeclHandler = _refuse_growing_entities
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, LookupError) as error:  # LookupError: an encoding nobody knows
        raise ValueError(f"not well-formed: {error}") from error
    return found.metadata


class _Collector:
    """Follows the parser through the tree; prefixes are dropped, since files bind them as they like."""

    def __init__(self) -> None:
        self.metadata = SvgMetadata()
        self._path: list[str] = []
        self._texts: list[list[str]] = []

    def start(self, name: str, _attributes: dict[str, str]) -> None:
        self._path.append(name.rsplit(":", 1)[-1])
        self._texts.append([])

    def text(self, text: str) -> None:
        self._texts[-1].append(text)

    def end(self, _name: str) -> None:
        text = " ".join("".join(self._texts.pop()).split())
        match self._path:
            case [*_, "Work", "title"]:  # not the titles of Agents, which are people's names
                self.metadata.title = self.metadata.title or text
            case [*_, "Work", "description"]:
                self.metadata.description = self.metadata.description or text
            case [*_, "Work", "subject", "Bag", "li"] if text:
                self.metadata.keywords.append(text)
        self._path.pop()


def _refuse_growing_entities(name: str, _parameter: bool, value: str | None, *_external: str | None) -> None:
    if value is not None and ("&" in value or "%" in value or len(value) > LONGEST_ENTITY):
        raise ValueError(f"entity {name} could grow without bound")
