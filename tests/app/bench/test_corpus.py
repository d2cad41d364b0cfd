"""The benchmark's pictures: the same each time, of the sizes and formats they are said to have, and served under as many URLs as asked for."""

import io
from pathlib import Path

from PIL import Image

from pipeline.app.bench.corpus import SIDES, corpus, picture


def test_pictures_have_the_sizes_and_formats_of_a_web(tmp_path: Path) -> None:
    made = [picture(number) for number in range(20)]
    opened = [Image.open(io.BytesIO(data)) for _, data in made]
    assert sorted({image.format for image in opened if image.format}) == ["JPEG", "PNG", "WEBP"]
    assert sum(image.format == "JPEG" for image in opened) == 18
    assert all(SIDES[0] <= min(image.size) <= max(image.size) <= SIDES[1] for image in opened)
    assert len({image.size for image in opened}) > 15
    assert 100_000 < sum(len(data) for _, data in made) / 20 < 200_000


def test_a_corpus_is_drawn_once_and_its_urls_differ(tmp_path: Path) -> None:
    made = corpus(tmp_path, distinct=3)
    written = {path.name: path.stat().st_mtime_ns for path in (made.folder / "pictures").iterdir()}
    assert corpus(tmp_path, distinct=3) == made
    assert {path.name: path.stat().st_mtime_ns for path in (made.folder / "pictures").iterdir()} == written
    urls = list(made.urls("http://x", 7))
    assert len(set(urls)) == 7
    assert {url.split("/")[-1].split("?")[0] for url in urls} == set(made.names)
    assert picture(2) == (made.names[2], (made.folder / "pictures" / made.names[2]).read_bytes())
