"""What `albef shards stats` says of a dataset, beside plain counting; and the contact sheet."""

import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont
from typer.testing import CliRunner

from pipeline.core import stopping
from pipeline.core.errors import DataError, Stopped
from shards import foreign, layout
from shards.cli import app
from shards.contact_sheet import LINES, PICTURE, wrapped, write_contact_sheet
from shards.reshard.reshard import Request, pinned, reshard
from shards.stats import Stats, Summary, gather, lines, spread_evenly

from .conftest import MakeDataset
from .foreign_tars import read_by_webdataset, write_laion


@pytest.fixture(scope="module")
def laion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_laion(tmp_path_factory.mktemp("laion"), [30, 25, 0, 15])
    foreign.index_folder(str(folder))
    return folder


def test_every_figure_is_that_of_plain_counting(laion: Path) -> None:
    found = gather(str(laion))
    samples = read_by_webdataset(laion)
    facts = [json.loads(sample["json"]) for sample in samples]
    captions = [sample["txt"].decode() for sample in samples]
    assert (found.samples, found.captions, found.shards, found.looked_at, found.damaged) == (70, 70, 4, 70, 0)
    assert found.bytes == sum(path.stat().st_size for path in laion.glob("*.tar"))
    assert found.formats == {"jpeg": 70}
    values = {
        "width": [one["width"] for one in facts],
        "height": [one["height"] for one in facts],
        "short_side": [min(one["width"], one["height"]) for one in facts],
        "aspect": [one["width"] / one["height"] for one in facts],
        "image_bytes": [len(sample["jpg"]) for sample in samples],
        "caption_words": [len(caption.split()) for caption in captions],
        "caption_characters": [len(caption) for caption in captions],
    }
    for name, expected in values.items():
        summary: Summary = getattr(found, name)
        assert summary.mean == pytest.approx(np.mean(expected))
        assert summary.points == pytest.approx(np.percentile(expected, (0, 5, 50, 95, 100)))
        for place, count in enumerate(summary.histogram):
            after = summary.bins[place + 1] if place + 1 < len(summary.bins) else float("inf")
            assert count == sum(summary.bins[place] <= value < after for value in expected)
        assert not summary.histogram or sum(summary.histogram) == 70
    counts = Counter(captions)
    assert (found.captions_read, found.distinct_captions) == (70, len(counts))
    assert all(counts[caption] == count for caption, count in found.common_captions.items())
    assert list(found.common_captions.values()) == [count for _, count in counts.most_common(5) if count > 1]


def test_workers_do_not_show(laion: Path) -> None:
    assert gather(str(laion), workers=2) == gather(str(laion))


@pytest.mark.parametrize(("total", "limit"), [(0, 5), (1, 5), (10, 3), (10, None), (7, 7), (1000, 60)])
def test_what_is_looked_at_is_spread_evenly(total: int, limit: int | None) -> None:
    numbers = spread_evenly(total, limit)
    assert len(set(numbers.tolist())) == (total if limit is None else min(total, limit))
    if len(numbers) > 1:
        assert (numbers[0], numbers[-1]) == (0, total - 1)
        assert np.ptp(np.diff(numbers)) <= 1


def test_a_limit_reads_that_many(laion: Path) -> None:
    found = gather(str(laion), limit=9)
    assert (found.samples, found.looked_at, found.captions_read) == (70, 9, 9)


def test_damaged_samples_are_counted_and_red(make_dataset: MakeDataset, flip_byte: Callable[[str, int], None], tmp_path: Path) -> None:
    folder = make_dataset([6]).folder
    flip_byte(layout.tar_path(folder, "00000"), 600)
    found = gather(folder)
    assert (found.looked_at, found.damaged, found.width is not None) == (6, 1, True)
    write_contact_sheet(folder, str(tmp_path / "sheet.png"))
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert (255, 0, 0) in {color for _, color in sheet.getcolors(100_000)}


def test_sources_of_a_mixed_dataset_are_counted_by_sample(laion: Path, make_dataset: MakeDataset, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    reshard(Request((pinned(str(laion)), pinned(make_dataset([12]).folder)), shuffle=1, rename_keys=True, samples_per_shard=30), out, 1)
    assert gather(out, limit=3).sources == {str(laion): 70, "made": 12}


def test_a_tar_without_provenance_beside_mixed_shards_counts_as_its_own_source(laion: Path, make_dataset: MakeDataset, tmp_path: Path) -> None:
    out = tmp_path / "out"
    reshard(Request((pinned(str(laion)), pinned(make_dataset([12]).folder)), shuffle=1, rename_keys=True, samples_per_shard=30), str(out), 1)
    (write_laion(tmp_path / "more", [5], first=90_000) / "00000.tar").rename(out / "foreign.tar")
    foreign.index_folder(str(out))
    assert gather(str(out), limit=3).sources == {str(laion): 70, "made": 12, str(out): 5}


def test_the_json_holds_what_the_text_says(laion: Path, tmp_path: Path) -> None:
    text = CliRunner().invoke(app, ["stats", str(laion), "--json", str(tmp_path / "stats.json"), "--workers", "1"]).stdout
    record = json.loads((tmp_path / "stats.json").read_text())
    summaries = {
        name: Summary(**{key: tuple(of) if isinstance(of, list) else of for key, of in value.items()}) for name, value in record.items() if name in SUMMARIES
    }
    assert "\n".join(lines(Stats(**record | summaries))) == text.strip()
    assert json.loads(CliRunner().invoke(app, ["stats", str(laion), "--json", "-", "--workers", "1"]).stdout) == record


SUMMARIES = ("image_bytes", "width", "height", "short_side", "aspect", "caption_words", "caption_characters")


def test_bars_show_the_bins_between_the_first_and_the_last_that_are_filled() -> None:
    summary = Summary(0.0, (0.0,) * 5, (0, 1, 2, 4, 8), (0, 4, 0, 8, 1))
    assert list(summary.bars(width=8)) == [
        "             1         4  ████",
        "         2 - 3         0",
        "         4 - 7         8  ████████",
        "    8 and more         1  █",
    ]


def test_a_dataset_without_samples_is_described_and_has_no_contact_sheet(make_dataset: MakeDataset, tmp_path: Path) -> None:
    folder = make_dataset([0]).folder
    assert any(line.startswith("looked at 0 samples") for line in lines(gather(folder)))
    with pytest.raises(DataError, match="no samples, so no contact sheet"):
        write_contact_sheet(folder, str(tmp_path / "sheet.png"))


def test_a_signal_stops_a_contact_sheet_before_it_is_written(laion: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "_received", ["SIGTERM"])
    with pytest.raises(Stopped, match="received SIGTERM"):
        write_contact_sheet(str(laion), str(tmp_path / "sheet.png"))
    assert not (tmp_path / "sheet.png").exists()


@pytest.mark.parametrize(
    "text", ["short", "a caption of several words that goes on for rather longer than one line", "W" * 300, "красная собака " * 20, "", "a b " * 99]
)
def test_captions_are_wrapped_to_the_width_of_their_picture(text: str) -> None:
    from shards.contact_sheet import _font

    font: ImageFont.FreeTypeFont = _font()
    for tail in ("", " (+3)"):
        found = wrapped(text, PICTURE[0], LINES, tail)
        assert len(found) <= LINES
        assert all(font.getlength(line) <= PICTURE[0] for line in found)
        shown = "".join("".join(found).split())
        assert shown.endswith(tail.strip())
        if "…" not in shown:
            assert shown == "".join((text + tail).split())


def test_a_caption_of_megabytes_is_wrapped_as_fast_as_its_beginning() -> None:
    for characters in (10_000, 4 * 2**20):
        text = ("a red dog on a chair " * (characters // 20))[:characters]
        began = time.process_time()
        found = wrapped(text, PICTURE[0], LINES, " (+3)")
        assert time.process_time() - began < 2
        assert found == wrapped(text[:500], PICTURE[0], LINES, " (+3)")
        assert found[-1].endswith("… (+3)")
