"""Lists of what nobody wants: every format, every kind of entry, and a line that is none."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ingest import block_list
from ingest.block_list import Match
from ingest.urls import picture_uid
from pipeline.core.errors import DataError

URL, UID, SHA256, PHASH = "http://a.example/x,y.jpg?q=1", "0123456789abcdef" * 2, "fe" * 32, "0f" * 8
ENTRIES = [URL, UID.upper(), SHA256, PHASH]


def written(tmp_path: Path, kind: str) -> str:
    path = tmp_path / f"list.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"url": ENTRIES, "reason": ["x"] * 4}), path)
    elif kind == "csv":
        path.write_text("url,reason\n" + "".join(f'"{entry}",asked\n' for entry in ENTRIES))
    else:
        path.write_text("# taken down\n\n" + "".join(f"  {entry}\r\n" for entry in ENTRIES))
    return str(path)


@pytest.mark.parametrize("kind", ["txt", "csv", "parquet"])
def test_each_kind_of_entry_is_found_in_each_kind_of_list(kind: str, tmp_path: Path) -> None:
    found = block_list.read([written(tmp_path, kind)])
    assert len(found) == 4
    assert found.of_address(picture_uid(URL), URL) == Match("url", URL)
    assert found.of_address("another tool's id", URL.replace("a.example", "A.example:80")) == Match("url", URL), "any spelling"
    assert found.of_address(UID, "http://b.example/") == Match("uid", UID)
    assert found.of_content(SHA256, None) == Match("sha256", SHA256)
    assert found.of_content("00" * 32, "0f" * 7 + "0e") == Match("phash", PHASH), "a re-encode moves a bit or two"
    assert found.of_content("00" * 32, "f0" * 8) is None
    assert found.of_address(picture_uid("http://b.example/"), "http://b.example/") is None


@pytest.mark.parametrize("line", ["abc", "0123", "ftp://a.example/x.jpg", "fe" * 31])
def test_a_line_that_is_nothing_is_named(line: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"{URL}\n{line}\n")
    with pytest.raises(DataError, match=r"list\.txt line 2: .* nothing that can be blocked"):
        block_list.read([str(tmp_path / "list.txt")])


def test_a_missing_list_and_a_parquet_with_unknown_columns_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.txt: not found"):
        block_list.read([str(tmp_path / "absent.txt")])
    pq.write_table(pa.table({"a": ["x"], "b": ["y"]}), tmp_path / "list.parquet")
    with pytest.raises(DataError, match=r"list\.parquet: has columns a, b"):
        block_list.read([str(tmp_path / "list.parquet")])


def test_the_nearest_hash_is_that_of_a_plain_search() -> None:
    draw = np.random.default_rng(0)
    known = draw.integers(0, 2**64, 500, dtype=np.uint64)
    for number in range(50):
        asked = int(known[number]) ^ sum(1 << int(bit) for bit in draw.choice(64, number % 8, replace=False))
        plain = min((int(one) ^ asked).bit_count() for one in known)
        found = block_list.nearest(known, f"{asked:016x}", 4)
        assert (found is not None) == (plain <= 4)
        assert found is None or (int(found, 16) ^ asked).bit_count() == plain
