"""The set made whole. `prepare` writes

packages/*.deb      the two packages, fetched by apt-get or put there by hand
pictures/           the PNGs, one file per content
pairs.parquet       the training list: url, caption, source; one row a caption
karpathy.json       the held-out pictures (splits val and test) in Karpathy's format, file paths below pictures/
openclipart.json    what became of every PNG, and what the set is like; written last
"""

import json
import logging
import statistics
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.app.openclipart.captions import caption, words_of
from pipeline.app.openclipart.lists import write_lists
from pipeline.app.openclipart.packages import archive_of
from pipeline.app.openclipart.pictures import Picture, read_drawings, write_pictures
from pipeline.app.openclipart.split import split
from pipeline.core import storage

log = logging.getLogger(__name__)

PACKAGES = ("openclipart-png", "openclipart-svg")
LICENCE = "Public Domain dedication (Creative Commons), /usr/share/doc/openclipart-png/copyright"
RECIPE = 1  # raised when the same packages would give other files


def prepare(out: Path, port: int = 8765, test: int = 500, val: int = 250) -> dict[str, Any]:
    """Fetch and unpack the packages, write the folder described above and return what openclipart.json holds.

    The URLs of the training list point to `port` on 127.0.0.1. Doing it again costs nothing; without the packages at hand it needs the network once.

    Raises:
        UserError: the packages cannot be fetched or unpacked, or too few pictures can be held out.
    """
    wanted = {"recipe": RECIPE, "port": port, "test": test, "val": val}
    if (before := _finished(out)) is not None and before["settings"] == wanted:
        log.info("openclipart: %s is complete", out)
        return before
    (out / "openclipart.json").unlink(missing_ok=True)  # from here to the end the folder is not complete
    png, svg = (archive_of(out / "packages", package) for package in PACKAGES)
    drawings = read_drawings(svg)
    outcomes: Counter[str] = Counter()
    pictures = write_pictures(png, out / "pictures", outcomes)
    states = caption(pictures, drawings)
    outcomes["no_text"] = sum(not picture.captions for picture in pictures)
    pictures = [picture for picture in pictures if picture.captions]
    split(pictures, test, val)
    outcomes.update(picture.split for picture in pictures)
    write_lists(out, pictures, port)
    summary = {"settings": wanted, "pngs": sum(outcomes.values()), "outcomes": dict(outcomes), "drawings": states, **_facts(out, pictures)}
    storage.write_bytes(str(out / "openclipart.json"), json.dumps(summary, indent=1).encode())
    log.info("openclipart: %d PNGs: %s", summary["pngs"], ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items()))
    return summary


def _finished(out: Path) -> dict[str, Any] | None:
    marker = out / "openclipart.json"
    if not marker.exists():
        return None
    summary: dict[str, Any] = json.loads(marker.read_text())
    return summary


def _facts(out: Path, pictures: list[Picture]) -> dict[str, Any]:
    """What the set is like."""
    splits = {split: [picture for picture in pictures if picture.split == split] for split in ("train", "val", "test")}
    widths, heights = zip(*(picture.size for picture in pictures), strict=True)
    return {
        "packages": sorted(archive.name for archive in (out / "packages").glob("*.deb")),
        "licence": LICENCE,
        "captions": {split: _caption_facts(chosen) for split, chosen in splits.items()},
        "width_px": _quantiles(widths),
        "height_px": _quantiles(heights),
        "file_bytes": _quantiles(picture.file_bytes for picture in pictures),
        "too_large_to_open": sum(picture.thumbnail is None for picture in pictures),
    }


def _caption_facts(pictures: list[Picture]) -> dict[str, Any]:
    captions = [caption for picture in pictures for caption in picture.captions]
    lengths = [len(words_of(caption)) for caption in captions]
    vocabulary = {word for caption in captions for word in words_of(caption)}
    return {"captions": len(captions), "distinct": len(set(captions)), "words": _quantiles(lengths), "vocabulary": len(vocabulary)}


def _quantiles(values: Iterable[int]) -> dict[str, float]:
    ordered = sorted(values)
    if not ordered:
        return {}
    return {"min": ordered[0], "median": statistics.median(ordered), "mean": round(statistics.fmean(ordered), 1), "max": ordered[-1]}
