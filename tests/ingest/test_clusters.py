"""A Spark and a Ray cluster on this machine, the real packages with two workers: the same dataset as from processes, made by our code."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from ingest import clusters, ingest
from ingest.config import EngineConfig, IngestConfig
from ingest.engine import check_distributor
from pipeline.core.errors import ConfigError
from shards.manifest import Manifest, read_manifest

ROWS = 2_000


def needs(distributor: str) -> None:
    """A missing library or Java is a skip with its reason for a user, a failure where everything must be there."""
    try:
        check_distributor(EngineConfig.model_validate({"distributor": distributor}))
    except ConfigError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))


@pytest.fixture
def config(tmp_path: Path, web: Any) -> IngestConfig:
    rows = [{"url": web.url(f"good/{number % 300}?{number}"), "caption": f"picture {number}"} for number in range(ROWS - 20)]
    rows += [{"url": web.url(f"status/404?{number}"), "caption": "gone"} for number in range(20)]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values: dict[str, Any] = {"sources": [{"type": "jsonl", "path": str(tmp_path / "list.jsonl")}], "output": str(tmp_path / "processes")}
    values |= {"samples_per_shard": 250, "fetch": {"allow_loopback": True, "timeout_s": 10}}
    return IngestConfig.model_validate(values)


def made_by(distributor: str, config: IngestConfig, tmp_path: Path) -> Manifest:
    engine = EngineConfig.model_validate({"distributor": distributor, "processes": 2})
    config = config.model_copy(update={"engine": engine, "output": str(tmp_path / distributor)})
    assert ingest.run(config, tmp_path / f"run_{distributor}")["outcomes"] == {"success": ROWS - 20, "http_404": 20}
    return read_manifest(config.output)


@pytest.mark.slow
@pytest.mark.parametrize("distributor", ["pyspark", "ray"])
def test_a_cluster_gives_the_same_dataset_as_processes(distributor: str, config: IngestConfig, tmp_path: Path) -> None:
    needs(distributor)
    expected, found = made_by("multiprocessing", config, tmp_path), made_by(distributor, config, tmp_path)
    assert found.shards == expected.shards
    assert found.fingerprint == expected.fingerprint
    outcomes = pq.read_table(tmp_path / distributor / "outcomes" / "00000.parquet")
    assert "attempts" in outcomes.column_names, "img2dataset's own Downloader keeps no such table"
    assert not list((tmp_path / distributor).glob("spool*"))


WITNESS = """
import json, sys
from pathlib import Path
from ingest import clusters
from ingest.config import EngineConfig

class Witness:
    # stands where a downloader stands, and writes down what a worker has for our packages; defined here, it travels by value
    def __call__(self, row):
        import hashlib, importlib, json, pathlib, sys
        said = {}
        for package in ("pipeline", "ingest", "shards"):
            file = importlib.import_module(package).__file__
            loader = importlib.import_module(package).__loader__
            said[package] = hashlib.sha256(loader.get_data(str(pathlib.Path(file).parent / "__init__.py"))).hexdigest()
        import ingest.downloader
        said["downloader"] = hashlib.sha256(ingest.downloader.__loader__.get_data(ingest.downloader.__file__)).hexdigest()
        said["torch"] = "torch" in sys.modules
        pathlib.Path(row[1]).write_text(json.dumps(said))
        return True, row

config = EngineConfig.model_validate({"distributor": sys.argv[1], "processes": 2})
with clusters.DISTRIBUTORS[config.distributor](config) as distribute:
    distribute(Witness(), [(number, str(Path(sys.argv[2], f"{number}.json"))) for number in range(4)])
"""


@pytest.mark.slow
@pytest.mark.parametrize("distributor", ["pyspark", "ray"])
def test_workers_of_a_cluster_run_the_code_of_this_checkout_and_no_torch(distributor: str, tmp_path: Path) -> None:
    needs(distributor)
    program = tmp_path / "witness.py"
    program.write_text(WITNESS)
    environment = os.environ | {"PYTHONPATH": str(clusters.ROOT), "PYSPARK_PYTHON": sys.executable}
    subprocess.run([sys.executable, str(program), distributor, str(tmp_path)], cwd=tmp_path, env=environment, check=True, capture_output=True, timeout=200)
    said = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("*.json"))]
    expected = {package: sha256(clusters.ROOT / package / "__init__.py") for package in ("pipeline", "ingest", "shards")}
    assert said == [{**expected, "downloader": sha256(clusters.ROOT / "ingest" / "downloader.py"), "torch": False}] * 4


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_distributor_that_is_not_installed_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(ConfigError, match=r"needs Java|pip install -e '.\[spark\]'"):
        check_distributor(EngineConfig.model_validate({"distributor": "pyspark"}))
