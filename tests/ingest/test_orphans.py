"""A worker that was frozen and wakes up after another took its shard writes nothing more: the lease keeps it out."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from waiting import wait_until

from ingest import pair_table
from ingest.config import FilterConfig, IngestConfig
from ingest.spool import Spool

ROWS = 40
WORKER = """
import json, sys
from ingest.config import IngestConfig
from ingest.downloader import GuardedDownloader
from ingest.spool import Spool
config = IngestConfig.model_validate(json.loads(open(sys.argv[1]).read()))
GuardedDownloader(config, Spool(sys.argv[2]), None, holders_are_dead=False)((0, sys.argv[3]))
"""


@pytest.fixture
def config(tmp_path: Path, web: Any) -> IngestConfig:
    (tmp_path / "list.jsonl").write_text("".join(json.dumps({"url": web.url(f"good/{n}"), "caption": f"picture {n}"}) + "\n" for n in range(ROWS)))
    values: dict[str, Any] = {"sources": [{"type": "jsonl", "path": str(tmp_path / "list.jsonl")}], "output": str(tmp_path / "dataset")}
    values |= {"fetch": {"allow_loopback": True}, "engine": {"concurrency": 2, "lease_s": 1}, "samples_per_shard": ROWS}
    config = IngestConfig.model_validate(values)
    (tmp_path / "config.json").write_text(config.model_dump_json())
    return config


def write_rows(config: IngestConfig, folder: Path) -> Path:
    """The shard's rows as img2dataset's Reader writes them."""
    pair_table.build(config.sources, FilterConfig(), ROWS, str(folder / "pairs"), str(folder / "rejected.parquet"), folder / "scratch")
    [part] = (folder / "pairs").glob("*.parquet")
    table = pq.read_table(part)
    with pa.OSFile(str(folder / "0.feather"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    return folder / "0.feather"


@pytest.mark.slow
def test_an_orphan_that_wakes_up_leaves_the_shard_of_its_heir_alone(config: IngestConfig, tmp_path: Path, web: Any) -> None:
    rows, spool = write_rows(config, tmp_path), Spool(str(tmp_path / "spool"))
    command = [sys.executable, "-c", WORKER, str(tmp_path / "config.json"), spool.folder, str(rows)]
    environment = os.environ | {"PYTHONPATH": str(Path(pair_table.__file__).parents[1])}
    web.delay_s = 0.2
    orphan = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    wait_until(lambda: web.asked.total() >= ROWS // 2)
    orphan.send_signal(signal.SIGSTOP)
    try:
        subprocess.run(command, env=environment, check=True, timeout=120)
        asked, tar = web.asked.total(), tmp_path / "dataset" / "00000.tar"
        before = hashlib.sha256(tar.read_bytes()).hexdigest(), tar.stat().st_mtime_ns
    finally:
        orphan.send_signal(signal.SIGCONT)
    _, errors = orphan.communicate(timeout=60)
    assert "another worker took over" in errors.decode()
    assert (hashlib.sha256(tar.read_bytes()).hexdigest(), tar.stat().st_mtime_ns) == before
    assert asked <= ROWS + config.engine.concurrency, "the heir goes on from the orphan's journal"
    assert web.asked.total() <= asked + config.engine.concurrency
    assert not Path(spool.journal("00000")).exists()
