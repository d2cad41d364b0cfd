"""Real pictures with words as noisy as the web: the Debian packages openclipart-png and openclipart-svg, in the public domain.

Every PNG has an SVG beside it whose metadata holds a title, a description and keywords by its author. `prepare` writes

packages/*.deb      the two packages, fetched by apt-get or put there by hand
pictures/           the PNGs, one file per content
pairs.parquet       the training list: url, caption, source; one row a caption
karpathy.json       the held-out pictures (splits val and test) in Karpathy's format, file paths below pictures/
openclipart.json    what became of every PNG, and what the set is like; written last
"""

import hashlib
import io
import json
import logging
import os
import posixpath
import re
import shutil
import statistics
import struct
import subprocess
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track

from pipeline.app.svg_metadata import SvgMetadata, read_svg_metadata
from pipeline.core import logs, storage
from pipeline.core.errors import DataError, UserError

log = logging.getLogger(__name__)

PACKAGES = ("openclipart-png", "openclipart-svg")
LICENCE = "Public Domain dedication (Creative Commons), /usr/share/doc/openclipart-png/copyright"
RECIPE = 1  # raised when the same packages would give other files

MAX_SHARED = 10  # a text on more pictures than this says nothing about one of them: the rule of ALIGN (Jia et al. 2021, section 3)
MAX_CAPTIONS = 3
MAX_PIXELS = 16_000_000  # larger pictures are not opened here, so they stay in training; ingest has its own limit
MIN_HELD_OUT_SIDE = 32  # pixels
MAX_HELD_OUT_ASPECT = 4.0
NEAR_TWIN_DISTANCE = 6.0  # root mean square of 0..255 between 16 x 16 thumbnails; under it lie copies and their touched-up versions
BLANK_DEVIATION = 1.0  # standard deviation of 0..255: white drawings on a transparent ground vanish on white paper
THUMBNAIL_SIDE = 16
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PILLOW_ERRORS = (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error)  # what damaged files make it raise
APT_TIMEOUT_S = 900

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
    png, svg = (_archive(out / "packages", package) for package in PACKAGES)
    drawings = _drawings(svg)
    outcomes: Counter[str] = Counter()
    pictures = _pictures(png, out / "pictures", outcomes)
    states = _caption(pictures, drawings)
    outcomes["no_text"] = sum(not picture.captions for picture in pictures)
    pictures = [picture for picture in pictures if picture.captions]
    _split(pictures, test, val)
    outcomes.update(picture.split for picture in pictures)
    _write_lists(out, pictures, port)
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


# -- the packages


def _archive(folder: Path, package: str) -> Path:
    if not list(folder.glob(f"{package}_*.deb")):
        _download(folder, package)
    return max(folder.glob(f"{package}_*.deb"))


def _download(folder: Path, package: str) -> None:
    """apt-get checks what it fetches against the signed lists; a whole file only ever appears under its name."""
    partial = folder / "partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    log.info("openclipart: fetching the Debian package %s", package)
    complaint = _apt_get(partial, "download", package)
    if complaint is not None and os.geteuid() == 0:  # a fresh container has no package lists
        complaint = _apt_get(partial, "update") or _apt_get(partial, "download", package)
    if complaint is not None:
        where = f"or put {package}_*.deb from https://packages.debian.org/{package} into {folder}"
        raise UserError(f"openclipart: apt-get download {package} failed ({complaint}); run `sudo apt-get update` and check the network, {where}")
    for archive in partial.glob("*.deb"):
        archive.replace(folder / archive.name)
    partial.rmdir()


def _apt_get(folder: Path, *arguments: str) -> str | None:
    """None, or the last line of the complaint."""
    options = ["-o", "APT::Sandbox::User=root"] if os.geteuid() == 0 else []  # else apt warns that its own user cannot write here
    try:
        subprocess.run(["apt-get", "-q", *options, *arguments], cwd=folder, check=True, capture_output=True, text=True, timeout=APT_TIMEOUT_S)
    except FileNotFoundError:
        return "apt-get is not installed"
    except subprocess.TimeoutExpired:
        return f"no end after {APT_TIMEOUT_S} s"
    except subprocess.CalledProcessError as error:
        return _last_line(error.stderr)
    return None


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1]


@dataclass(frozen=True)
class Member:
    """A file of a package, or a link to another one; names are below usr/share/openclipart/png or .../svg."""

    name: str
    data: bytes = b""
    link: str | None = None


def _members(archive: Path, kind: str) -> Iterator[Member]:
    """The files ending in .`kind`, in the package's order, straight from the archive: 360 MB that need not touch the disk."""
    try:
        unpacking = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(archive)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except FileNotFoundError:
        raise UserError("openclipart: dpkg-deb is not installed; this needs Debian or a system with its package tools") from None
    damaged = ""
    with unpacking:
        assert unpacking.stdout is not None
        assert unpacking.stderr is not None
        try:
            with tarfile.open(fileobj=unpacking.stdout, mode="r|") as tar:
                yield from _members_of(tar, f"usr/share/openclipart/{kind}", f".{kind}")
        except tarfile.TarError as error:
            damaged = str(error)
        complaint = unpacking.stderr.read().decode(errors="replace")
    if damaged or unpacking.returncode != 0:
        raise DataError(f"{archive}: cannot be unpacked ({_last_line(complaint or damaged)}); delete it and run again")


def _members_of(tar: tarfile.TarFile, top: str, suffix: str) -> Iterator[Member]:
    for entry in tar:
        path = posixpath.normpath(entry.name)  # so that no name leads out of the folder it is written to
        if not path.startswith(f"{top}/") or not path.endswith(suffix):
            continue
        name = posixpath.relpath(path, top)
        if entry.issym():
            yield Member(name, link=posixpath.normpath(posixpath.join(posixpath.dirname(name), entry.linkname)))
        elif entry.islnk():
            yield Member(name, link=posixpath.relpath(posixpath.normpath(entry.linkname), top))
        elif (content := tar.extractfile(entry)) is not None:
            yield Member(name, data=content.read())


def _followed(links: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Every link with the name at the end of its chain; a circle ends where it began."""
    for name in sorted(links):
        target, seen = links[name], {name}
        while target in links and target not in seen:
            seen.add(target)
            target = links[target]
        yield name, target


# -- the pictures and the drawings


def _drawings(svg: Path) -> dict[str, SvgMetadata | None]:
    """What is written in every drawing, by its name without suffix; None where it cannot be read."""
    found: dict[str, SvgMetadata | None] = {}
    links: dict[str, str] = {}
    for member in _members(svg, "svg"):
        stem = member.name.removesuffix(".svg")
        if member.link is not None:
            links[stem] = member.link.removesuffix(".svg")
            continue
        try:
            found[stem] = read_svg_metadata(member.data)
        except ValueError as error:
            log.warning("openclipart: the metadata of %s cannot be read: %s", member.name, error)
            found[stem] = None
    found.update({stem: found[target] for stem, target in _followed(links) if target in found})
    return found


def _pictures(png: Path, folder: Path, outcomes: Counter[str]) -> list[Picture]:
    """Write every readable content to `folder`, once; other names of the same content are counted as duplicates."""
    by_content: dict[str, Picture] = {}
    by_name: dict[str, Picture] = {}
    links: dict[str, str] = {}
    for member in track(_members(png, "png"), description="unpacking the pictures", console=logs.console, disable=not logs.console.is_terminal):
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
    for name, target in _followed(links):
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


# -- the captions


def _caption(pictures: list[Picture], drawings: dict[str, SvgMetadata | None]) -> dict[str, int]:
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
    sharing = Counter(key for authors in written for key in {_key(text) for metadata in authors for text in (metadata.title, metadata.description)})
    return {key for key, pictures in sharing.items() if pictures > MAX_SHARED}


def _texts(name: str, metadata: SvgMetadata, common: set[str]) -> list[str]:
    """Title, description, and title with keywords, as the author wrote them; the file's name stands in for a collection's title."""
    if metadata == SvgMetadata():
        return []
    title = metadata.title if metadata.title and _key(metadata.title) not in common else _file_words(name)
    texts = [title]
    if metadata.description and _key(metadata.description) not in common:
        texts.append(metadata.description)
    if keywords := [keyword for keyword in metadata.keywords if not keyword.startswith("hash")]:  # a Perl reference somebody printed: hash(0x8a0a540)
        texts.append(", ".join(dict.fromkeys([title, *keywords])))
    return texts


def _different(texts: list[str]) -> list[str]:
    first: dict[str, str] = {}
    for text in texts:
        first.setdefault(_key(text), text)
    return list(first.values())


def _file_words(name: str) -> str:
    return " ".join(re.split(r"[\W_]+", Path(name).stem)).strip()


def _key(text: str) -> str:
    """What makes two texts the same: their words without case, digits and punctuation ("Crawfish 1" and "crawfish-02" are one)."""
    return " ".join(_words(text)) or text


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", text.lower())


# -- the split


def _split(pictures: list[Picture], test: int, val: int) -> None:
    """Hold out `test` + `val` pictures that a caption of their own can find; which ones depends on nothing but their names.

    A held-out picture keeps the captions no other picture has, and has no near twin anywhere.
    """
    sharing = Counter(key for picture in pictures for key in {_key(caption) for caption in picture.captions})
    eligible = [picture for picture in pictures if _can_be_held_out(picture, sharing)]
    eligible = _without_near_twins(eligible, pictures)
    if len(eligible) < test + val:
        raise DataError(f"openclipart: {test + val} pictures were to be held out, but only {len(eligible)} have a title of their own; ask for fewer")
    log.info("openclipart: %d of %d pictures could be held out", len(eligible), len(pictures))
    for position, picture in enumerate(sorted(eligible, key=_shuffled)[: test + val]):
        picture.split = "test" if position < test else "val"
        picture.captions = [caption for caption in picture.captions if _distinctive(caption, sharing)]


def _can_be_held_out(picture: Picture, sharing: Counter[str]) -> bool:
    width, height = picture.size
    visible = picture.thumbnail is not None and float(picture.thumbnail.std()) > BLANK_DEVIATION
    shaped = min(width, height) >= MIN_HELD_OUT_SIDE and max(width, height) <= MAX_HELD_OUT_ASPECT * min(width, height)
    return visible and shaped and picture.titled and _distinctive(picture.captions[0], sharing)


def _distinctive(caption: str, sharing: Counter[str]) -> bool:
    """Two words or more, on one picture only."""
    return sharing[_key(caption)] == 1 and sum(len(word) > 1 for word in _words(caption)) >= 2


def _without_near_twins(eligible: list[Picture], pictures: list[Picture]) -> list[Picture]:
    """Those whose thumbnail is farther than NEAR_TWIN_DISTANCE from that of every other picture."""
    if not eligible:
        return []
    everyone, own = _thumbnails(pictures), _thumbnails(eligible)  # [N, 768] and [E, 768]
    squares = np.square(own).sum(axis=1)[:, None] - 2 * own @ everyone.T + np.square(everyone).sum(axis=1)
    near = (squares / own.shape[1] < NEAR_TWIN_DISTANCE**2).sum(axis=1)
    return [picture for picture, count in zip(eligible, near, strict=True) if count == 1]  # itself


def _thumbnails(pictures: list[Picture]) -> NDArray[np.float64]:
    return np.stack([picture.thumbnail for picture in pictures if picture.thumbnail is not None]).astype(np.float64)


def _shuffled(picture: Picture) -> str:
    """A sort key without any order in it, the same on every machine."""
    return hashlib.sha256(picture.name.encode()).hexdigest()


# -- the files


def _write_lists(out: Path, pictures: list[Picture], port: int) -> None:
    train = sorted((picture for picture in pictures if picture.split == "train"), key=_shuffled)
    rows = [(f"http://127.0.0.1:{port}/pictures/{quote(picture.name)}", caption) for picture in train for caption in picture.captions]
    urls, captions = zip(*rows, strict=True) if rows else ((), ())
    table = pa.table(
        {"url": pa.array(urls, pa.string()), "caption": pa.array(captions, pa.string()), "source": pa.array(["openclipart"] * len(rows), pa.string())}
    )
    with storage.atomic_write(str(out / "pairs.parquet")) as file:
        pq.write_table(table, file)
    held_out = [picture for split in ("val", "test") for picture in sorted(pictures, key=_shuffled) if picture.split == split]
    storage.write_bytes(str(out / "karpathy.json"), json.dumps(_karpathy(held_out), ensure_ascii=False).encode())


def _karpathy(pictures: list[Picture]) -> dict[str, Any]:
    """The format of Karpathy's dataset_coco.json."""
    images, sentences = [], _sentences(pictures)
    for number, (picture, own) in enumerate(zip(pictures, sentences, strict=True)):
        folder, _, file = picture.name.rpartition("/")
        image = {"filepath": folder, "filename": file, "imgid": number, "split": picture.split}
        images.append({**image, "sentids": [sentence["sentid"] for sentence in own], "sentences": own})
    return {"images": images, "dataset": "openclipart"}


def _sentences(pictures: list[Picture]) -> Iterator[list[dict[str, Any]]]:
    sentid = 0
    for number, picture in enumerate(pictures):
        own = [{"tokens": _words(raw), "raw": raw, "imgid": number, "sentid": sentid + place} for place, raw in enumerate(picture.captions)]
        sentid += len(own)
        yield own


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
    lengths = [len(_words(caption)) for caption in captions]
    vocabulary = {word for caption in captions for word in _words(caption)}
    return {"captions": len(captions), "distinct": len(set(captions)), "words": _quantiles(lengths), "vocabulary": len(vocabulary)}


def _quantiles(values: Iterable[int]) -> dict[str, float]:
    ordered = sorted(values)
    if not ordered:
        return {}
    return {"min": ordered[0], "median": statistics.median(ordered), "mean": round(statistics.fmean(ordered), 1), "max": ordered[-1]}
