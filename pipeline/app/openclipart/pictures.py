"""The pictures of the package, one a content, and the words their authors wrote into the drawings beside them."""

import hashlib
import io
import logging
import struct
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track

from pipeline.app.openclipart.packages import Member, followed, members
from pipeline.app.openclipart.svg_metadata import SvgMetadata, read_svg_metadata
from pipeline.core import logs

log = logging.getLogger(__name__)

MAX_PIXELS = 16_000_000  # larger pictures are not opened here, so they stay in training; ingest has its own limit
THUMBNAIL_SIDE = 16
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PILLOW_ERRORS = (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error)  # what damaged files make it raise

Thumbnail = NDArray[np.float32]  # [16 * 16 * 3], 0..255, on white


@dataclass
class Picture:
    """One content, with all the names it has in the package."""

    names: list[str]
    size: tuple[int, int]  # width and height in pixels
    file_bytes: int
    thumbnail: Thumbnail | None  # None when the picture is too large
    titled: bool = False  # the first caption is a title of its own, not its file's name
    captions: list[str] = field(default_factory=list)
    split: str = "train"

    @property
    def name(self) -> str:
        """Where it goes below pictures/."""
        return self.names[0]


def read_drawings(svg: Path) -> dict[str, SvgMetadata | None]:
    """What is written in every drawing, by its name without suffix; None where it cannot be read."""
    found: dict[str, SvgMetadata | None] = {}
    links: dict[str, str] = {}
    for member in members(svg, "svg"):
        stem = member.name.removesuffix(".svg")
        if member.link is not None:
            links[stem] = member.link.removesuffix(".svg")
            continue
        try:
            found[stem] = read_svg_metadata(member.data)
        except ValueError as error:
            log.warning("openclipart: the metadata of %s cannot be read: %s", member.name, error)
            found[stem] = None
    found.update({stem: found[target] for stem, target in followed(links) if target in found})
    return found


def write_pictures(png: Path, folder: Path, outcomes: Counter[str]) -> list[Picture]:
    """Write every readable content to `folder`, once; other names of the same content are counted as duplicates."""
    by_content: dict[str, Picture] = {}
    by_name: dict[str, Picture] = {}
    links: dict[str, str] = {}
    for member in track(members(png, "png"), description="unpacking the pictures", console=logs.console, disable=not logs.console.is_terminal):
        if member.link is not None:
            links[member.name] = member.link
            continue
        content = hashlib.sha256(member.data).hexdigest()
        if content in by_content:
            links[member.name] = by_content[content].name
        elif (picture := _picture(member, folder)) is not None:
            by_content[content] = by_name[member.name] = picture
        else:
            outcomes["broken"] += 1
    for name, target in followed(links):
        if target in by_name:
            by_name[target].names.append(name)
        outcomes["duplicate" if target in by_name else "broken"] += 1
    return list(by_name.values())


def _picture(member: Member, folder: Path) -> Picture | None:
    """The picture, written below `folder`; None when its bytes are damaged."""
    try:
        size = _png_size(member.data)
        thumbnail = _thumbnail(member.data) if size[0] * size[1] <= MAX_PIXELS else None
    except PILLOW_ERRORS as error:
        log.warning("openclipart: %s cannot be read: %s", member.name, error)
        return None
    path = folder / member.name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(member.data)
    return Picture([member.name], size, len(member.data), thumbnail)


def _png_size(data: bytes) -> tuple[int, int]:
    """Width and height from the header, without decoding: one picture of the package has 623 million pixels."""
    if not data.startswith(PNG_SIGNATURE) or len(data) < 24:
        raise ValueError("not a PNG")
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def _thumbnail(data: bytes) -> Thumbnail:
    with Image.open(io.BytesIO(data)) as image:
        rgba = image.convert("RGBA")
    paper = Image.new("RGBA", rgba.size, "white")
    paper.alpha_composite(rgba)
    small = paper.convert("RGB").resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32).ravel()
