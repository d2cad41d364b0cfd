"""What is in a dataset more than once is listed: each later sample once, with the earliest it repeats."""

import itertools
import random
from pathlib import Path
from typing import Any

import pytest

from ingest import duplicates, published
from pipeline.core import parquet, storage
from shards import manifest
from shards.manifest import Manifest, ShardEntry

Row = dict[str, Any]


def write_tables(folder: str, rows: list[Row], per_shard: int) -> Manifest:
    entries = []
    for number, start in enumerate(range(0, len(rows), per_shard)):
        name, part = f"{number:05d}", rows[start : start + per_shard]
        entry = ShardEntry(name if number else published.rest_name(name, 2), len(part), len(part), 1, "0" * 64, "x")
        published.write(folder, name, part, entry)
        entries.append(entry)
    return manifest.publish(folder, entries, {"success": len(rows)}, {})


def rows_with_copies(number: int, seed: int) -> list[Row]:
    """Copies of a few pictures: the same bytes, up to six bits turned over, or of another look with other bytes."""
    draw = random.Random(seed)
    looks = [draw.getrandbits(64) for _ in range(number // 3)]
    rows: list[Row] = []
    for position in range(number):
        look = draw.choice(looks)
        for bit in draw.sample(range(64), draw.choice([0, 0, 1, 2, 3, 6])):
            look ^= 1 << bit
        sha256 = draw.choice(rows)["sha256"] if rows and draw.random() < 0.2 else f"{draw.getrandbits(256):064x}"
        row: Row = {"key": f"{position:06d}", "uid": f"{position:032x}", "url": "", "source": draw.choice(["cc3m", "sbu"]), "extra": None, "detail": ""}
        rows.append(row | {"outcome": "success" if draw.random() < 0.9 else "timeout", "sha256": sha256, "phash": f"{look:016x}"})
    return rows


def plain(rows: list[Row]) -> list[tuple[str, str, str, int]]:
    """Every sample against every earlier one."""
    kept = [row for row in rows if row["outcome"] == "success"]
    exact, near, first_of_bytes = [], [], list[Row]()
    for row in kept:
        same = next((other for other in first_of_bytes if other["sha256"] == row["sha256"]), None)
        if same is not None:
            exact.append(("exact", row["key"], same["key"], bits(row, same)))
            continue
        like = next((other for other in first_of_bytes if bits(row, other) <= 4), None)
        if like is not None:
            near.append(("near", row["key"], like["key"], bits(row, like)))
        first_of_bytes.append(row)
    return exact + near


def bits(one: Row, other: Row) -> int:
    return (int(one["phash"], 16) ^ int(other["phash"], 16)).bit_count()


def read(folder: str) -> list[Row]:
    found: list[Row] = parquet.read_table(storage.join(folder, duplicates.FILE)).to_pylist()
    return found


@pytest.mark.parametrize("seed", range(5))
def test_the_list_is_that_of_comparing_all_with_all(seed: int, tmp_path: Path) -> None:
    rows = rows_with_copies(300, seed)
    newest = write_tables(str(tmp_path), rows, 70)
    totals = duplicates.report(str(tmp_path), newest)
    found, source = read(str(tmp_path)), {row["key"]: row["source"] for row in rows}
    assert [(row["kind"], row["key"], row["first"], row["distance"]) for row in found] == plain(rows)
    assert all((row["source"], row["source_of_first"]) == (source[row["key"]], source[row["first"]]) for row in found)
    for kind, one, other in itertools.product(("exact", "near"), ("cc3m", "sbu"), ("cc3m", "sbu")):
        counted = sum((row["kind"], row["source_of_first"], row["source"]) == (kind, one, other) for row in found)
        assert totals[kind].get(one, {}).get(other, 0) == counted


def test_it_is_counted_again_only_when_the_dataset_is_another(tmp_path: Path) -> None:
    rows = rows_with_copies(40, 1)
    newest = write_tables(str(tmp_path), rows, 30)
    totals = duplicates.report(str(tmp_path), newest)
    written = (tmp_path / duplicates.FILE).stat().st_mtime_ns
    assert duplicates.report(str(tmp_path), newest) == totals
    assert (tmp_path / duplicates.FILE).stat().st_mtime_ns == written
    smaller = manifest.publish(str(tmp_path), newest.shards[:1], {}, {})
    duplicates.report(str(tmp_path), smaller)
    assert {row["key"] for row in read(str(tmp_path))} < {row["key"] for row in rows[:30]}


def test_a_dataset_without_a_copy_or_without_a_sample_has_an_empty_list_on_s3_too(s3_bucket: str) -> None:
    rows = [
        row | {"sha256": f"{n + 1:064x}"[::-1], "phash": phash}
        for n, (row, phash) in enumerate(zip(rows_with_copies(6, 0), ["0" * 16, "f" * 16, None], strict=False))
    ]
    for folder, some in ((f"{s3_bucket}/one", [row | {"outcome": "success"} for row in rows]), (f"{s3_bucket}/none", [])):
        newest = write_tables(folder, some, 2)
        assert duplicates.report(folder, newest) == {"exact": {}, "near": {}}
        assert read(folder) == []
