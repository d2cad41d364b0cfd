"""Storage: whole files or none, on disk and on S3."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from wire_proxy import WireProxy

from pipeline.core import storage
from pipeline.core.errors import DataError, StorageUnreachable
from pipeline.core.loopback import free_port


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


def test_a_range_on_s3_is_the_same_as_on_disk_also_when_empty_or_behind_the_end(tmp_path: Path, s3_bucket: str) -> None:
    ranges = [(0, 3), (3, 3), (2, 2), (8, 20), (10, 12), (50, 60)]
    read = []
    for folder in (str(tmp_path), s3_bucket):
        storage.write_bytes(f"{folder}/b.bin", b"0123456789")
        read.append([storage.read_range(f"{folder}/b.bin", start, end) for start, end in ranges])
    assert read[0] == read[1] == [b"012", b"", b"", b"89", b"", b""]


@pytest.mark.parametrize(("path", "parts", "joined"), [("s3://b/", ("x", "/y"), "s3://b/x/y"), ("/", ("a",), "/a"), ("a/b", ("c",), "a/b/c")])
def test_join_never_doubles_a_slash(path: str, parts: tuple[str, ...], joined: str) -> None:
    assert storage.join(path, *parts) == joined


@pytest.mark.slow
def test_a_store_that_stops_answering_is_asked_again_and_nobody_waits_for_ever(s3_bucket: str, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    with WireProxy(urlsplit(s3_endpoint).port or 0) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        s3fs.S3FileSystem.clear_instance_cache()
        storage.write_bytes(f"{s3_bucket}/before", b"x")
        for use in (lambda: storage.exists(f"{s3_bucket}/before"), lambda: storage.write_bytes(f"{s3_bucket}/after", b"y")):
            proxy.hang()
            waking = threading.Timer(3, proxy.revive)
            waking.start()
            use()  # the suite's time-out of 300 s is what fails here
            waking.join()


def test_a_store_that_is_away_is_told_from_a_mistake(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    with pytest.raises(DataError) as missing:
        storage.read_bytes(f"{s3_bucket}/nothing")
    assert not isinstance(missing.value, StorageUnreachable)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    s3fs.S3FileSystem.clear_instance_cache()
    calls: list[float] = []

    def ask() -> bytes:
        calls.append(time.monotonic())
        return storage.read_bytes(f"{s3_bucket}/nothing")

    with pytest.raises(StorageUnreachable, match="cannot be reached"):
        storage.patiently(ask, 15.0)
    assert len(calls) > 1
    assert calls[-1] - calls[0] < 15.0


def test_of_those_who_create_a_file_at_once_one_succeeds(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        created = list(pool.map(lambda number: storage.create(str(tmp_path / "x"), str(number).encode()), range(8)))
    assert created.count(True) == 1
    assert (tmp_path / "x").read_bytes() == str(created.index(True)).encode()
    assert len(list(tmp_path.iterdir())) == 1


def test_unfinished_uploads_below_a_folder_are_aborted_and_no_others(s3_bucket: str) -> None:
    fs, bucket = storage.filesystem(s3_bucket)
    for key in ("set/00000.tar", "set/index/00000", "settings/00000.tar"):
        fs.call_s3("create_multipart_upload", Bucket=bucket, Key=key)
    assert storage.abort_uploads(f"{s3_bucket}/set/") == 2
    assert [upload["Key"] for upload in fs.call_s3("list_multipart_uploads", Bucket=bucket)["Uploads"]] == ["settings/00000.tar"]


def test_what_another_process_wrote_after_a_listing_is_there(s3_bucket: str) -> None:
    import s3fs

    storage.write_bytes(f"{s3_bucket}/run/student", b"x")
    assert storage.list_files(f"{s3_bucket}/run") == ["student"]
    s3fs.S3FileSystem(skip_instance_cache=True).pipe_file(f"{s3_bucket.removeprefix('s3://')}/run/manifest", b"y")
    assert storage.exists(f"{s3_bucket}/run/manifest")
    assert storage.read_bytes(f"{s3_bucket}/run/manifest") == b"y"
