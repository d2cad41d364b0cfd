"""Sources made as a configuration makes them, and archives in the owners' layout."""

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ingest.config import IngestConfig
from ingest.pair import Pair, RejectedRow, Row
from ingest.sources.source import Source


@pytest.fixture
def source() -> Callable[..., Source]:
    def make(kind: str, path: Path | str, **options: Any) -> Source:
        values = {"sources": [{"type": kind, "path": str(path), **options}], "output": "unused"}
        return IngestConfig.model_validate(values).sources[0]

    return make


@pytest.fixture
def read(source: Callable[..., Source]) -> Callable[..., list[Row]]:
    """All rows of a source: (type, path, further options)."""
    return lambda kind, path, **options: list(source(kind, path, **options).rows())


@pytest.fixture
def pairs_of() -> Callable[[list[Row]], list[Pair]]:
    return lambda rows: [row for row in rows if isinstance(row, Pair)]


@pytest.fixture
def reasons_of() -> Callable[[list[Row]], list[tuple[int, str]]]:
    return lambda rows: [(row.row, row.reason) for row in rows if isinstance(row, RejectedRow)]


@pytest.fixture
def make_zip() -> Callable[..., str]:
    def make(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> str:
        with zipfile.ZipFile(path, "w", method) as archive:
            for name, data in members.items():
                archive.writestr(name, data)
        return str(path)

    return make


@pytest.fixture
def make_tar() -> Callable[..., str]:
    def make(path: Path, members: dict[str, bytes]) -> str:
        with tarfile.open(path, "w") as archive:
            for name, data in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        return str(path)

    return make
