"""A tar in pieces: whatever is looked at, the bytes are right, all of them are hashed, and little is held."""

import hashlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core import storage
from pipeline.core.errors import DataError
from shards import index, tar, writer
from shards.tar_stream import HELD_PIECES, LocalSlices, TarStream

from .conftest import samples

DATA = bytes(range(256)) * 40


@settings(max_examples=60, deadline=None)
@given(looks=st.lists(st.tuples(st.integers(0, len(DATA)), st.integers(0, 3000)), max_size=20), piece_bytes=st.integers(1, 4000))
def test_any_looks_in_any_order_give_the_bytes_and_the_hash_is_of_all(
    tmp_path_factory: pytest.TempPathFactory, looks: list[tuple[int, int]], piece_bytes: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "stream.bin"
    path.write_bytes(DATA)
    with TarStream(str(path), piece_bytes) as stream, LocalSlices(str(path)) as slices:
        assert len(stream) == len(slices) == len(DATA)
        for start, length in looks:
            assert bytes(stream[start : start + length]) == slices[start : start + length] == DATA[start : start + length]
            assert len(stream._held) <= HELD_PIECES
        assert stream.sha256() == hashlib.sha256(DATA).hexdigest()


@pytest.mark.parametrize("piece_bytes", [512, 1000, 2**20])
def test_a_tar_on_s3_is_indexed_and_hashed_in_one_pass(tmp_path: Path, s3_bucket: str, piece_bytes: int) -> None:
    entry = writer.write_shard(str(tmp_path / "x.tar"), samples(0, 20))
    storage.write_bytes(f"{s3_bucket}/x.tar", (tmp_path / "x.tar").read_bytes())
    with TarStream(f"{s3_bucket}/x.tar", piece_bytes) as stream:
        found = index.index_of(stream, "x.tar")
        assert stream.sha256() == entry.sha256
    assert index.index_bytes(found) == (tmp_path / "index" / "x.albef").read_bytes()


def test_a_file_that_shrinks_while_it_is_read_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    writer.write_shard(str(path), samples(0, 20))
    with TarStream(str(path), 4096) as stream, LocalSlices(str(path)) as slices:
        path.write_bytes(path.read_bytes()[:5000])
        for data in (stream, slices):
            with pytest.raises(DataError, match=r"^[^\n]*x\.tar: ended at byte \d+ while it was read[^\n]*$"):
                list(tar.groups(data, str(path)))


def test_a_missing_tar_is_named(tmp_path: Path) -> None:
    for open_it in (TarStream, LocalSlices):
        with pytest.raises(DataError, match=r"absent\.tar: not found"):
            open_it(str(tmp_path / "absent.tar"))
