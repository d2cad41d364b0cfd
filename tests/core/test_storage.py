"""Storage: whole files or none, on disk; the same functions serve S3 (tests/shards)."""

from pathlib import Path

import pytest

from pipeline.core import storage
from pipeline.core.errors import DataError


def test_a_write_that_fails_leaves_the_old_file_and_no_temporary_one(tmp_path: Path) -> None:
    target = tmp_path / "data.bin"
    storage.write_bytes(str(target), b"old")

    def fails_halfway() -> None:
        with storage.atomic_write(str(target)) as file:
            file.write(b"half of the new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails_halfway()
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_nothing_is_visible_under_the_name_before_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "data.bin"
    with storage.atomic_write(str(target)) as file:
        file.write(b"x")
        assert not target.exists()
    assert target.read_bytes() == b"x"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.bin: not found"):
        storage.read_bytes(str(tmp_path / "absent.bin"))


def test_ranges_and_listings(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "b.bin"), b"0123456789")
    storage.write_bytes(str(tmp_path / "inner" / "a.bin"), b"")
    assert storage.read_range(str(tmp_path / "b.bin"), 3, 6) == b"345"
    assert storage.list_files(str(tmp_path)) == ["b.bin"]
    assert storage.list_folders(str(tmp_path)) == ["inner"]
    assert storage.list_files(str(tmp_path / "absent")) == []


@pytest.mark.parametrize(("path", "parts", "joined"), [("s3://b/", ("x", "/y"), "s3://b/x/y"), ("/", ("a",), "/a"), ("a/b", ("c",), "a/b/c")])
def test_join_never_doubles_a_slash(path: str, parts: tuple[str, ...], joined: str) -> None:
    assert storage.join(path, *parts) == joined
