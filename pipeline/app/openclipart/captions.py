"""Captions out of what the authors wrote: title, description, and title with keywords."""

import re
from collections import Counter
from pathlib import Path

from pipeline.app.openclipart.pictures import Picture
from pipeline.app.openclipart.svg_metadata import SvgMetadata

MAX_SHARED = 10  # a text on more pictures than this says nothing about one of them: the rule of ALIGN (Jia et al. 2021, section 3)
MAX_CAPTIONS = 3


def caption(pictures: list[Picture], drawings: dict[str, SvgMetadata | None]) -> dict[str, int]:
    """Give every picture its captions, none to one without any words; returns in what state the drawings' metadata was."""
    states: Counter[str] = Counter()
    written = [[_metadata(name, drawings, states) for name in picture.names] for picture in pictures]
    common = _common(written)
    for picture, authors in zip(pictures, written, strict=True):
        texts = [text for name, metadata in zip(picture.names, authors, strict=True) for text in _texts(name, metadata, common)]
        picture.captions = _different(texts)[:MAX_CAPTIONS]
        picture.titled = bool(texts) and texts[0] == authors[0].title
    return dict(states)


def _metadata(name: str, drawings: dict[str, SvgMetadata | None], states: Counter[str]) -> SvgMetadata:
    stem = name.removesuffix(".png")
    metadata = drawings.get(stem)
    if metadata is None:
        states["broken" if stem in drawings else "missing"] += 1
        return SvgMetadata()
    states["with_text" if metadata != SvgMetadata() else "empty"] += 1
    return metadata


def _common(written: list[list[SvgMetadata]]) -> set[str]:
    """The titles and descriptions (as keys) of more than MAX_SHARED pictures: names of collections, addresses of their authors."""
    sharing = Counter(key for authors in written for key in {text_key(text) for metadata in authors for text in (metadata.title, metadata.description)})
    return {key for key, pictures in sharing.items() if pictures > MAX_SHARED}


def _texts(name: str, metadata: SvgMetadata, common: set[str]) -> list[str]:
    """Title, description, and title with keywords, as the author wrote them; the file's name stands in for a collection's title."""
    if metadata == SvgMetadata():
        return []
    title = metadata.title if metadata.title and text_key(metadata.title) not in common else _file_words(name)
    texts = [title]
    if metadata.description and text_key(metadata.description) not in common:
        texts.append(metadata.description)
    if keywords := [keyword for keyword in metadata.keywords if not keyword.startswith("hash")]:  # a Perl reference somebody printed: hash(0x8a0a540)
        texts.append(", ".join(dict.fromkeys([title, *keywords])))
    return texts


def _different(texts: list[str]) -> list[str]:
    first: dict[str, str] = {}
    for text in texts:
        first.setdefault(text_key(text), text)
    return list(first.values())


def _file_words(name: str) -> str:
    return " ".join(re.split(r"[\W_]+", Path(name).stem)).strip()


def text_key(text: str) -> str:
    """What makes two texts the same: their words without case, digits and punctuation ("Crawfish 1" and "crawfish-02" are one)."""
    return " ".join(words_of(text)) or text


def words_of(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", text.lower())
