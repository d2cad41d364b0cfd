"""An S3 server for benchmarks and tests: moto in a process of its own, whose CPU seconds are nobody's."""

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from pipeline.core.errors import AlbefError, ConfigError

START_S = 60.0
KEYS = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench", "AWS_DEFAULT_REGION": "us-east-1"}


@contextmanager
def s3_bucket(work: Path, name: str = "bench") -> Iterator[tuple[str, str]]:
    """(`s3://<bucket>`, its http URL), with AWS_* pointing there meanwhile.

    Raises:
        ConfigError: moto is not installed.
        AlbefError: it does not start.
    """
    import s3fs

    if find_spec("moto") is None:
        raise ConfigError("the cases s3-* need moto: install the extra dev, or leave them out with --cases")
    work.mkdir(parents=True, exist_ok=True)
    before = {key: os.environ.get(key) for key in (*KEYS, "AWS_ENDPOINT_URL")}
    with s3_server(work / "moto.log") as endpoint:
        try:
            os.environ.update(KEYS, AWS_ENDPOINT_URL=endpoint)
            s3fs.S3FileSystem.clear_instance_cache()  # an earlier client may know another endpoint
            public = {"x-amz-acl": "public-read"}  # so that http clients without keys may read
            urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{name}", method="PUT", headers=public), timeout=10).close()
            yield f"s3://{name}", f"{endpoint}/{name}"
        finally:
            s3fs.S3FileSystem.clear_instance_cache()
            for key, value in before.items():
                if value is None:
                    os.environ.pop(key, None)
                else:
                    os.environ[key] = value


@contextmanager
def s3_server(log: Path) -> Iterator[str]:
    """The endpoint URL of a server that ends with the block.

    Raises AlbefError when it does not start.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"], stdout=output, stderr=output, env={**os.environ, **KEYS}
        )
    try:
        yield _endpoint(process, log)
    finally:
        process.terminate()
        process.wait(timeout=10)


def _endpoint(process: "subprocess.Popen[bytes]", log: Path) -> str:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        for word in log.read_text(encoding="utf-8", errors="replace").split():
            if word.startswith("http://127.0.0.1:"):
                return word.rstrip("/")
        time.sleep(0.1)
    raise AlbefError(f"the S3 server did not start; see {log}")
