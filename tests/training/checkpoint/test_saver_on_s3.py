"""Saving to S3: what is not finished is not visible and not billed, and a store that is away for a while costs no checkpoint."""

from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from faulty_front import FaultyFront
from saving import ALONE, newest_is, save
from waiting import wait_until
from wire_proxy import WireProxy

from pipeline.core import storage
from pipeline.core.errors import Stopped, StorageUnreachable
from training.checkpoint import Saver, newest, read

PASSING = ("status_500", "status_503", "reset", "truncated")


@pytest.fixture
def proxy(s3_bucket: str, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[WireProxy]:
    """Between this process and the store."""
    with WireProxy(urlsplit(s3_endpoint).port or 0) as standing_between:
        _go_through(standing_between.endpoint, monkeypatch)
        yield standing_between


def _go_through(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    s3fs.S3FileSystem.clear_instance_cache()


def saver_in(folder: str, patience_s: float = 0.0) -> Saver:
    return Saver(folder, ALONE, keep_last=1, keep_every_steps=None, patience_s=patience_s)


def test_a_save_to_s3_is_like_one_to_disk_and_aborts_the_uploads_of_dead_runs(s3_bucket: str) -> None:
    fs, bucket = storage.filesystem(s3_bucket)
    for key in ("run/checkpoints/step-0000001/student.safetensors", "run/other"):
        fs.call_s3("create_multipart_upload", Bucket=bucket, Key=key)
    storage.write_bytes(f"{s3_bucket}/run/checkpoints/step-0000001/student.safetensors", b"half")
    saver = saver_in(f"{s3_bucket}/run/checkpoints")
    for step in (2, 3, 3):
        save(saver, step)
    saver.wait()
    assert newest_is(f"{s3_bucket}/run/checkpoints", 3)
    assert storage.list_folders(f"{s3_bucket}/run/checkpoints") == ["step-0000003"]
    assert "student.safetensors" not in storage.list_files(f"{s3_bucket}/run/checkpoints/step-0000003")  # the second is in again/
    assert [upload["Key"] for upload in fs.call_s3("list_multipart_uploads", Bucket=bucket)["Uploads"]] == ["run/other"]
    slices = read(f"{s3_bucket}/run/checkpoints").slices("student")
    assert slices.read("weight.0", 998, 2).tolist() == [3.0, 3.0]


def test_a_store_that_is_away_for_a_while_costs_no_checkpoint(s3_bucket: str, proxy: WireProxy, caplog: pytest.LogCaptureFixture) -> None:
    saver = saver_in(s3_bucket, patience_s=200.0)
    save(saver, 1)
    saver.wait()
    proxy.die()
    save(saver, 2)
    wait_until(lambda: "cannot be reached" in caplog.text)
    assert not saver.failed
    proxy.revive()
    saver.wait()
    assert newest_is(s3_bucket, 2)
    assert [record.levelname for record in caplog.records if record.name.startswith("training")] == ["WARNING", "WARNING"]


def test_a_store_that_stays_away_ends_the_run_and_the_last_checkpoint_is_whole(s3_bucket: str, proxy: WireProxy) -> None:
    saver = saver_in(s3_bucket, patience_s=0.5)
    save(saver, 1)
    saver.wait()
    proxy.die()
    save(saver, 2)
    with pytest.raises(Stopped, match=rf"the checkpoint of step 2 could not be written to {s3_bucket} for 0\.5 s .*cannot be reached") as raised:
        saver.wait()
    assert raised.value.exit_code == 4
    proxy.revive()
    assert newest_is(s3_bucket, 1)


@pytest.mark.slow
def test_an_upload_of_many_parts_that_breaks_off_is_begun_again(s3_bucket: str, proxy: WireProxy, caplog: pytest.LogCaptureFixture) -> None:
    fs, bucket = storage.filesystem(s3_bucket)
    saver = saver_in(s3_bucket, patience_s=200.0)
    save(saver, 1, elements=20 << 20)  # student and optimizer of 80 MiB
    wait_until(lambda: bool(fs.call_s3("list_multipart_uploads", Bucket=bucket).get("Uploads")))
    proxy.die()
    wait_until(lambda: "cannot be reached" in caplog.text)
    proxy.revive()
    saver.wait()
    assert newest_is(s3_bucket, 1)


@pytest.mark.slow
def test_reads_that_fail_now_and_then_fail_no_save_and_no_load(s3_bucket: str, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with FaultyFront(urlsplit(s3_endpoint).port or 0, share=0.3, seed=1, faults=PASSING) as front:
        _go_through(front.endpoint, monkeypatch)
        saver = saver_in(s3_bucket, patience_s=100.0)
        for step in range(1, 6):
            save(saver, step)
        saver.wait()
        found = storage.patiently(lambda: newest(s3_bucket), 100.0)
        assert found is not None
        parts = [storage.patiently(lambda start=start: found.slices("student").read("weight.0", start, 100), 100.0) for start in range(0, 1000, 100)]
        assert {value for part in parts for value in part.tolist()} == {5.0}
        assert front.injected.total() > 3
    _go_through(s3_endpoint, monkeypatch)
    assert newest_is(s3_bucket, 5)


def test_a_store_that_is_away_is_no_damage_and_nobody_goes_back_to_an_older_checkpoint(
    s3_bucket: str, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = Saver(s3_bucket, ALONE, keep_last=2, keep_every_steps=None, patience_s=0.0)
    for step in (1, 2):
        save(saver, step)
    saver.wait()
    with FaultyFront(urlsplit(s3_endpoint).port or 0, share=1.0, seed=1, faults=("status_503",)) as front:  # `latest` and manifests are answered
        _go_through(front.endpoint, monkeypatch)
        with pytest.raises(StorageUnreachable):
            newest(s3_bucket)
        assert front.injected.total() > 0
