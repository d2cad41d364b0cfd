"""The S3 server that dies in mid-run: for a while, and ingest continues; for good, and it ends with one line and a state to go on from."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from ingest_command import running
from waiting import wait_until
from wire_proxy import WireProxy

from ingest import ingest
from ingest.config import IngestConfig
from pipeline.core.errors import Stopped
from shards.manifest import read_manifest

ROWS = 120
OUTAGE_S = 10.0


@pytest.fixture
def proxy(s3_bucket: str, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[WireProxy]:
    """Between every client of this test and the S3 server."""
    import s3fs

    with WireProxy(urlsplit(s3_endpoint).port or 0) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        s3fs.S3FileSystem.clear_instance_cache()
        yield proxy
        proxy.revive()


@pytest.fixture
def config(tmp_path: Path, web: Any, s3_bucket: str, proxy: WireProxy) -> IngestConfig:
    (tmp_path / "list.jsonl").write_text("".join(json.dumps({"url": web.url(f"good/{n}"), "caption": f"picture {n}"}) + "\n" for n in range(ROWS)))
    values: dict[str, Any] = {"sources": [{"type": "jsonl", "path": str(tmp_path / "list.jsonl")}], "output": f"{s3_bucket}/set", "samples_per_shard": 30}
    values["fetch"] = {"allow_loopback": True, "timeout_s": 5}
    values["engine"] = {"processes": 2, "concurrency": 4, "lease_s": 5, "spool": f"{s3_bucket}/spool", "storage_patience_s": 40}
    return IngestConfig.model_validate(values)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["die", "hang"])
def test_an_outage_of_ten_seconds_is_waited_for(fault: str, config: IngestConfig, proxy: WireProxy, web: Any, tmp_path: Path) -> None:
    web.delay_s = 0.3
    with running(config, tmp_path / "run") as command:
        wait_until(lambda: web.asked.total() >= ROWS // 3)
        getattr(proxy, fault)()
        time.sleep(OUTAGE_S)
        proxy.revive()
        _, errors = command.communicate(timeout=200)
    assert command.returncode == 0, errors.decode()
    assert read_manifest(config.output).num_samples == ROWS
    assert web.asked.total() == ROWS, "nobody was asked twice"


@pytest.mark.slow
def test_a_server_that_is_gone_for_good_ends_it_with_one_line_and_it_goes_on_later(config: IngestConfig, proxy: WireProxy, web: Any, tmp_path: Path) -> None:
    web.delay_s = 0.3
    impatient = config.model_copy(update={"engine": config.engine.model_copy(update={"storage_patience_s": 5.0})})
    with running(impatient, tmp_path / "run") as command:
        wait_until(lambda: web.asked.total() >= ROWS // 3)
        proxy.die()
        _, errors = command.communicate(timeout=120)
    last = errors.decode().strip().splitlines()[-1]
    assert Stopped.__name__ in last
    assert "storage cannot be reached" in last
    assert "run the same command again" in last
    proxy.revive()
    web.delay_s = 0.0
    assert ingest.run(config, tmp_path / "run")["samples"] == ROWS
    assert web.asked.total() <= ROWS + config.engine.processes * (config.engine.concurrency + 64)
