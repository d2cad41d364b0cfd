"""Small tables come back whole, from disk and from S3."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.core import parquet, storage
from pipeline.core.errors import DataError


def test_a_table_comes_back_from_disk_and_from_s3(tmp_path: Path, s3_bucket: str) -> None:
    table = pa.table({"key": ["a", "b"], "size": [1, 2]})
    for folder in (str(tmp_path), s3_bucket):
        path = storage.join(folder, "table.parquet")
        with storage.atomic_write(path) as file:
            pq.write_table(table, file)
        assert parquet.read_table(path).equals(table)
        assert parquet.read_table(path, ["size", "of a later version"]).equals(table.select(["size"]))


def test_a_table_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.parquet: not found"):
        parquet.read_table(str(tmp_path / "absent.parquet"))
