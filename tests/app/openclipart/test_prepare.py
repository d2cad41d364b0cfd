"""Pictures and words out of a miniature of the Debian packages, built here with dpkg-deb."""

import io
import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.app.openclipart.packages import Member, members_of
from pipeline.app.openclipart.prepare import prepare
from pipeline.core.errors import DataError, UserError

pytestmark = pytest.mark.skipif(shutil.which("dpkg-deb") is None and "CI" not in os.environ, reason="needs dpkg-deb (Debian's package tools)")

TITLED = ["Red Apple", "Green Pear", "Old Barn", "Steam Engine", "Angry Monkey", "Desk Lamp", "Wine Glass", "Plush Tux", "Police Man", "Jingle Bells"]


def drawn(seed: int) -> Image.Image:
    """A picture of its own: coloured blocks, some of them transparent."""
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 4), dtype=np.uint8)
    blocks[..., 3] = np.where(blocks[..., 3] < 64, 0, 255)
    return Image.fromarray(blocks, "RGBA").resize((48, 40), Image.Resampling.NEAREST)


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def svg(title: str = "", description: str = "", keywords: tuple[str, ...] = ()) -> bytes:
    items = "".join(f"<rdf:li>{escape(keyword)}</rdf:li>" for keyword in keywords)
    work = f"<dc:title>{escape(title)}</dc:title><dc:description>{escape(description)}</dc:description><dc:subject><rdf:Bag>{items}</rdf:Bag></dc:subject>"
    names = 'xmlns:rdf="r" xmlns:cc="c" xmlns:dc="d"'
    return f"<svg><metadata><rdf:RDF {names}><cc:Work>{work}</cc:Work></rdf:RDF></metadata></svg>".encode()


class Packages:
    """Two package trees that grow picture by picture."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, kind: str, name: str) -> Path:
        path = self.folder / f"openclipart-{kind}" / "usr" / "share" / "openclipart" / kind / f"{name}.{kind}"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def add(self, name: str, picture: bytes, drawing: bytes | None) -> None:
        self.path("png", name).write_bytes(picture)
        if drawing is not None:
            self.path("svg", name).write_bytes(drawing)

    def link(self, name: str, target: str) -> None:
        for kind in ("png", "svg"):
            self.path(kind, name).symlink_to(f"{target}.{kind}")

    def build(self, out: Path) -> None:
        (out / "packages").mkdir(parents=True)
        for package in ("openclipart-png", "openclipart-svg"):
            control = self.folder / package / "DEBIAN" / "control"
            control.parent.mkdir()
            control.write_text(f"Package: {package}\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@example.org>\nDescription: miniature\n")
            command = ["dpkg-deb", "-Znone", "--build", str(self.folder / package), str(out / "packages" / f"{package}_1_all.deb")]
            subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
def packages(tmp_path: Path) -> Packages:
    """Ten pictures with titles of their own and twelve of a collection that all have the same one."""
    packages = Packages(tmp_path / "trees")
    for number, title in enumerate(TITLED):
        packages.add(f"things/{title.lower().replace(' ', '_')}_01", png(drawn(number)), svg(title, keywords=("things", "hash(0x8a0a540)")))
    for number in range(12):
        packages.add(f"icons/flat/mail_{'abcdefghijkl'[number]}", png(drawn(100 + number)), svg("Part of the Flat Collection", keywords=("icons",)))
    return packages


def pairs(out: Path) -> dict[str, list[str]]:
    """Training captions by the file name of their picture."""
    captions: dict[str, list[str]] = {}
    for row in pq.read_table(out / "pairs.parquet").to_pylist():
        captions.setdefault(row["url"].rsplit("/", 1)[-1], []).append(row["caption"])
    return captions


def held_out(out: Path) -> dict[str, dict[str, Any]]:
    return {image["filename"]: image for image in json.loads((out / "karpathy.json").read_text())["images"]}


def test_every_png_ends_in_one_outcome(packages: Packages, tmp_path: Path) -> None:
    packages.link("fruit/apple", "../things/red_apple_01")
    packages.link("odd/nowhere", "does_not_exist")
    packages.link("odd/circle", "circle")
    packages.add("odd/same_bytes", png(drawn(1)), svg("Another Pear"))
    packages.add("odd/damaged", png(drawn(50))[:200], svg("Half Picture"))
    packages.add("odd/not_a_png", b"GIF89a", svg("Other Format"))
    packages.add("odd/no_drawing", png(drawn(51)), None)
    packages.add("odd/empty_words", png(drawn(52)), svg())
    packages.add("odd/broken_words", png(drawn(53)), svg("Cut Off")[:-10])
    packages.build(tmp_path / "out")
    summary = prepare(tmp_path / "out", test=3, val=2)
    assert summary["outcomes"] == {"duplicate": 2, "broken": 4, "no_text": 3, "train": 17, "test": 3, "val": 2}
    assert summary["pngs"] == 31
    assert summary["drawings"] == {"with_text": 24, "missing": 1, "empty": 1, "broken": 1}
    assert json.loads((tmp_path / "out" / "openclipart.json").read_text()) == summary


def test_captions_are_title_description_and_title_with_keywords(packages: Packages, tmp_path: Path) -> None:
    packages.add("animals/dog", png(drawn(60)), svg("dog", "A dog sleeps\n on the rug.", ("animal", "pet", "animal")))
    packages.add("animals/cat", png(drawn(61)), svg("Cat", "cat 2"))
    packages.build(tmp_path / "out")
    prepare(tmp_path / "out", test=1, val=1)
    captions = pairs(tmp_path / "out")
    assert captions["dog.png"] == ["dog", "A dog sleeps on the rug.", "dog, animal, pet"]
    assert captions["cat.png"] == ["Cat"]


def test_a_title_that_many_pictures_share_gives_way_to_the_file_name(packages: Packages, tmp_path: Path) -> None:
    packages.build(tmp_path / "out")
    prepare(tmp_path / "out", test=1, val=1)
    assert pairs(tmp_path / "out")["mail_c.png"] == ["mail c", "mail c, icons"]


def test_a_picture_under_two_names_is_one_picture_with_the_words_of_both(packages: Packages, tmp_path: Path) -> None:
    packages.add("a/dog", png(drawn(60)), svg("dog"))
    packages.add("b/dog", png(drawn(60)), svg("chien"))
    packages.build(tmp_path / "out")
    prepare(tmp_path / "out", test=1, val=1)
    assert sorted(pairs(tmp_path / "out")["dog.png"]) == ["chien", "dog"]


def test_held_out_pictures_are_in_karpathys_format_and_never_in_training(packages: Packages, tmp_path: Path) -> None:
    packages.build(tmp_path / "out")
    prepare(tmp_path / "out", test=4, val=3)
    images = held_out(tmp_path / "out")
    assert sorted(image["split"] for image in images.values()) == ["test"] * 4 + ["val"] * 3
    assert not images.keys() & pairs(tmp_path / "out").keys()
    assert sorted(image["imgid"] for image in images.values()) == list(range(7))
    sentences = [sentence for image in images.values() for sentence in image["sentences"]]
    assert sorted(sentence["sentid"] for sentence in sentences) == list(range(len(sentences)))
    for image in images.values():
        assert image["sentids"] == [sentence["sentid"] for sentence in image["sentences"]]
        assert {sentence["imgid"] for sentence in image["sentences"]} == {image["imgid"]}
        assert image["sentences"][0]["raw"] in TITLED
        assert image["sentences"][0]["tokens"] == image["sentences"][0]["raw"].lower().split()
        with Image.open(tmp_path / "out" / "pictures" / image["filepath"] / image["filename"]) as picture:
            picture.load()


def test_only_what_a_caption_of_its_own_can_find_is_held_out(packages: Packages, tmp_path: Path) -> None:
    twin = drawn(70)
    packages.add("odd/twin", png(twin), svg("First Twin"))
    twin.putpixel((3, 3), (0, 0, 0, 255))
    packages.add("odd/touched_up", png(twin), svg("Second Twin"))
    packages.add("odd/blank", png(Image.new("RGBA", (48, 40), (255, 255, 255, 0))), svg("White Nothing"))
    packages.add("odd/one_word", png(drawn(71)), svg("Zebra", keywords=("animal", "striped")))
    packages.add("odd/numbered_1", png(drawn(72)), svg("Fire Truck 1"))
    packages.add("odd/numbered_2", png(drawn(73)), svg("fire-truck 2"))
    packages.add("odd/thin", png(drawn(74).resize((300, 40))), svg("Long Ruler"))
    packages.add("odd/tiny", png(drawn(75).resize((20, 20))), svg("Tiny Button"))
    packages.build(tmp_path / "out")
    prepare(tmp_path / "out", test=7, val=3)
    images = held_out(tmp_path / "out")
    assert {image["sentences"][0]["raw"] for image in images.values()} == set(TITLED)
    with pytest.raises(DataError, match=r"^openclipart: 11 pictures were to be held out, but only 10 [^\n]+$"):
        prepare(tmp_path / "out", test=8, val=3)
    assert not (tmp_path / "out" / "openclipart.json").exists()  # nothing half-changed passes for complete


def test_the_same_packages_give_the_same_files_and_again_costs_nothing(packages: Packages, tmp_path: Path) -> None:
    packages.build(tmp_path / "one")
    shutil.copytree(tmp_path / "one" / "packages", tmp_path / "two" / "packages")
    first, second = prepare(tmp_path / "one", test=3, val=2), prepare(tmp_path / "two", test=3, val=2)
    assert first == second
    for file in ("pairs.parquet", "karpathy.json", "openclipart.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    shutil.rmtree(tmp_path / "two" / "packages")
    assert prepare(tmp_path / "two", test=3, val=2) == second


def test_urls_name_the_port_and_are_quoted(packages: Packages, tmp_path: Path) -> None:
    packages.add("odd ones/50% off+#1", png(drawn(80)), svg("sale"))
    packages.build(tmp_path / "out")
    prepare(tmp_path / "out", port=9123, test=1, val=1)
    rows = pq.read_table(tmp_path / "out" / "pairs.parquet").to_pylist()
    assert {row["source"] for row in rows} == {"openclipart"}
    assert [row["url"] for row in rows if row["caption"] == "sale"] == ["http://127.0.0.1:9123/pictures/odd%20ones/50%25%20off%2B%231.png"]


def test_a_damaged_package_is_named_in_one_line(packages: Packages, tmp_path: Path) -> None:
    packages.build(tmp_path / "out")
    archive = tmp_path / "out" / "packages" / "openclipart-png_1_all.deb"
    archive.write_bytes(archive.read_bytes()[:20_000])
    with pytest.raises(DataError, match=r"^\S+openclipart-png_1_all\.deb: cannot be unpacked [^\n]+$"):
        prepare(tmp_path / "out", test=3, val=2)
    assert not (tmp_path / "out" / "openclipart.json").exists()


def test_a_package_that_cannot_be_fetched_is_one_line_with_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    with pytest.raises(
        UserError, match=r"^openclipart: apt-get download openclipart-png failed \(apt-get is not installed\)[^\n]+https://packages.debian.org/openclipart-png"
    ):
        prepare(tmp_path / "out")
    (programs / "apt-get").write_text("#!/bin/sh\necho 'E: Unable to locate package' >&2\nexit 100\n")
    (programs / "apt-get").chmod(0o755)
    with pytest.raises(UserError, match=r"^openclipart: [^\n]+\(E: Unable to locate package\)[^\n]+$"):
        prepare(tmp_path / "out")


def test_members_never_lead_out_of_the_folder() -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name in ("./usr/share/openclipart/png/../../../../../etc/x.png", "/usr/share/openclipart/png/y.png", "./usr/share/openclipart/png/a/../z.png"):
            entry = tarfile.TarInfo(name)
            entry.size = 3
            tar.addfile(entry, io.BytesIO(b"abc"))
    file.seek(0)
    with tarfile.open(fileobj=file) as tar:
        assert list(members_of(tar, "usr/share/openclipart/png", ".png")) == [Member("z.png", b"abc")]
