"""A picture of a dataset: samples evenly spread, each with its caption, on one PNG."""

import bisect
import io
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from pipeline.core import stopping, storage
from pipeline.core.errors import DataError
from shards import tar
from shards.manifest import read_manifest
from shards.pixels.decode import decode_image
from shards.stats import Look, captions_of, looks_at, samples

COLUMNS, PICTURE, LINE, LINES, MARGIN = 6, (208, 156), 15, 3, 8  # pixels, but for the columns and the lines of a caption
TILE = (PICTURE[0] + 2 * MARGIN, PICTURE[1] + LINES * LINE + 2 * MARGIN)
MOST_CHARACTERS = 2_000  # of a caption that are looked at: several times what fits, since a caption may have megabytes
READS_AT_ONCE = 8

Shown = tuple[Image.Image, str, str]  # a thumbnail, its caption, and how many more it has


def write_contact_sheet(folder: str, path: str, manifest: int | None = None, index_root: str | None = None, pictures: int = 60) -> None:
    """Write a PNG of at most `pictures` samples; a damaged one leaves its place red.

    Raises:
        DataError: the dataset is missing or has no samples.
        Stopped: a signal came; nothing is written then.
    """
    root = index_root or folder
    looks = looks_at(folder, root, read_manifest(root, manifest), pictures)
    if not looks:
        raise DataError(f"{folder}: no samples, so no contact sheet")
    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        shown = [one for some in pool.map(_shown, looks) for one in some]
    sheet = Image.new("RGB", (COLUMNS * TILE[0], -(-len(shown) // COLUMNS) * TILE[1]), "white")
    for place, one in enumerate(shown):
        row, column = divmod(place, COLUMNS)
        _paste(sheet, column * TILE[0], row * TILE[1], one)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    storage.write_bytes(path, buffer.getvalue())


def _paste(sheet: Image.Image, left: int, top: int, shown: Shown) -> None:
    """The picture stands on its caption, which begins at its left edge."""
    thumbnail, caption, more = shown
    sheet.paste(thumbnail, (left + MARGIN, top + MARGIN + PICTURE[1] - thumbnail.height))
    pen = ImageDraw.Draw(sheet)
    for number, line in enumerate(wrapped(caption, PICTURE[0], LINES, more)):
        pen.text((left + MARGIN, top + MARGIN + PICTURE[1] + 2 + number * LINE), line, fill="#222222", font=_font())


def _shown(look: Look) -> list[Shown]:
    found: list[Shown] = []
    for facts in samples(look):
        stopping.raise_if_stopping(None)
        try:
            if facts is None:
                raise DataError("checksum")
            member, captions = tar.image_member(facts.group), captions_of(facts)
            assert member is not None, "only groups with a picture are indexed"
            thumbnail = Image.fromarray(decode_image(bytes(facts.data[member.data : member.data + member.size])))
            thumbnail.thumbnail(PICTURE)
            more = f" (+{len(captions) - 1})" if len(captions) > 1 else ""
            found.append((thumbnail, captions[0] if captions else "(no caption)", more))
        except DataError:
            found.append((Image.new("RGB", PICTURE, "red"), "damaged", ""))
    return found


def wrapped(text: str, width: int, lines: int, tail: str = "") -> list[str]:
    """At most `lines` lines that are at most `width` pixels wide as the font draws them, with `tail` at the end; an ellipsis for what does not fit."""
    found: list[str] = []
    rest = " ".join(text.split())
    if len(rest) > MOST_CHARACTERS:
        rest = f"{rest[:MOST_CHARACTERS]}…"
    while rest and len(found) < lines:
        if _font().getlength(rest + tail) <= width:
            return [*found, rest + tail]
        last = len(found) == lines - 1
        end = f"…{tail}" if last else ""
        fits = max(1, bisect.bisect_right(range(1, len(rest) + 1), float(width), key=lambda size: _font().getlength(rest[:size].rstrip() + end)))
        space = len(rest) if fits == len(rest) else rest.rfind(" ", 1, fits + 1)
        cut = fits if last or space < 1 else space  # a word wider than the line, or of a script without spaces, is cut
        found.append(rest[:cut].rstrip() + end)
        rest = rest[cut:].lstrip()
    return [*found, tail.strip()] if tail and len(found) < lines else found


@cache
def _font() -> ImageFont.FreeTypeFont:
    """DejaVu, which matplotlib brings along: Latin, Greek, Cyrillic, Arabic."""
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), LINE - 3)
