"""Fixtures for every room: an S3 server of our own on loopback."""

import urllib.request
import uuid
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Endpoint URL of a moto server in a process of its own, reached over TCP."""
    from pipeline.app.bench import moto

    with moto.s3_server(tmp_path_factory.mktemp("s3") / "moto.log") as endpoint:
        yield endpoint


@pytest.fixture
def s3_endpoint(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The server's URL, with AWS_* pointing at it for this test."""
    for name, value in {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    _forget_clients()
    yield s3_server
    _forget_clients()


def _forget_clients() -> None:
    """A client keeps the endpoint it was made with, and an earlier test's was another."""
    import s3fs

    from shards import rewrite

    s3fs.S3FileSystem.clear_instance_cache()
    rewrite.own_transport.cache_clear()


@pytest.fixture
def s3_bucket(s3_endpoint: str) -> str:
    """`s3://<new bucket>`, empty."""
    bucket = f"test-{uuid.uuid4().hex[:12]}"
    urllib.request.urlopen(urllib.request.Request(f"{s3_endpoint}/{bucket}", method="PUT"), timeout=10).close()
    return f"s3://{bucket}"
