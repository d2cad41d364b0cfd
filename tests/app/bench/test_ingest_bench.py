"""`albef bench ingest` in small: the rows have their shape, and both sides store the same pictures. How fast, no test says."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.app import cli
from pipeline.app.bench import crawl, ingest
from pipeline.core.errors import AlbefError, ConfigError


@pytest.mark.slow
@pytest.mark.parametrize("case", ["http", "https"])
def test_both_fetch_the_same_pictures_and_the_rows_say_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    monkeypatch.setattr(crawl, "DISTINCT", 20)
    ours, start_up = ingest.run([case], ingest.Scale(pictures=200, rows=28, rounds=1, work=tmp_path))
    assert (ours.case, ours.unit, start_up.case, start_up.unit) == (case, "pictures/CPU-s", f"{case} start-up", "CPU-s")
    assert min(ours.ours, ours.peer, start_up.ours, start_up.peer) > 0
    assert "same samples and sizes" in ours.note  # it raises otherwise
    assert [path.name for path in tmp_path.glob("*") if path.is_dir()] == ["pictures-20-v1"]


def test_outputs_that_differ_give_no_row() -> None:
    one, other = crawl.Stored(10, 8, b""), crawl.Stored(10, 9, b"")
    with pytest.raises(AlbefError, match="another size"):
        crawl.alike({"a": one}, {"a": other}, 1)
    with pytest.raises(AlbefError, match="albef stored 1 and img2dataset 2"):
        crawl.alike({"a": one}, {"a": one, "b": one}, 2)


def test_the_command_writes_the_rows_it_measured(tmp_path: Path) -> None:
    arguments = ["ingest", "--cases", "pairs-14m", "--rows", "1400", "--rounds", "1", "--json", str(tmp_path / "rows.json"), "--work", str(tmp_path / "work")]
    result = CliRunner().invoke(cli.bench_app, arguments)
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [row["case"] for row in rows] == ["pairs-14m", "pairs-14m memory"]


def test_a_case_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--cases htp: no such case; there are http, https, https-one-authority, pairs-14m"):
        ingest.run(["http", "htp"], ingest.Scale(10, 28, 1, tmp_path))
