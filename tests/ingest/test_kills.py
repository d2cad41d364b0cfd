"""kill -9 of any process of ingest at any moment, on disk and on S3: no row is lost or doubled, and the tars are the same.

20 kills on disk and 20 on S3 here, 100 each with `make chaos-ingest`, which writes docs/benchmarks/chaos_ingest.json.
"""

import contextlib
import hashlib
import json
import os
import random
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from ingest_command import processes, running

from ingest.config import IngestConfig
from ingest.journal import ROWS_PER_OBJECT
from pipeline.app.figures import commit, machine
from pipeline.core import parquet, storage

KILLS = int(os.environ.get("CHAOS_KILLS", "20"))
FIGURES = os.environ.get("CHAOS_JSON")
SEED = int(os.environ.get("CHAOS_SEED", "20"))
KILLS_PER_DATASET = 5  # then it may finish, and is compared
ROWS, DEAD_ROWS = 240, 24
DELAY_S = 0.25


@dataclass
class Campaign:
    """Ingests the same list again and again, killing as it goes."""

    web: Any
    make_config: Callable[[str], IngestConfig]
    folder: Path
    draw: random.Random
    whole_s: float = 0.0  # what an uninterrupted command takes, from exec on
    hits: Counter[str] = field(default_factory=Counter)
    asked_again: list[float] = field(default_factory=list)  # rows per kill
    datasets: int = 0

    def dataset(self, output: str, kills: int) -> dict[str, str]:
        """One dataset, killed `kills` times on its way if it takes so long; returns its files' hashes."""
        config = self.make_config(output)
        run_folder = self.folder / f"run{self.datasets}"
        self.datasets += 1
        self.web.asked.clear()
        before = self.hits.total()
        while self.hits.total() - before < kills and not _is_published(config):
            self._kill_once(config, run_folder)
        started = time.monotonic()
        with running(config, run_folder) as command:
            _, errors = command.communicate(timeout=300)
        assert command.returncode == 0, errors.decode()
        self.whole_s = self.whole_s or time.monotonic() - started
        self._count_requests(config, self.hits.total() - before)
        return check_and_hash(config)

    def _count_requests(self, config: IngestConfig, kills: int) -> None:
        again = self.web.asked.total() - (ROWS + DEAD_ROWS)
        in_flight = config.engine.concurrency + (ROWS_PER_OBJECT if config.engine.spool else 0)
        assert 0 <= again <= kills * config.engine.processes * in_flight, f"{again} rows were asked for again after {kills} kills"
        if kills:
            self.asked_again.append(again / kills)

    def _kill_once(self, config: IngestConfig, run_folder: Path) -> None:
        with running(config, run_folder) as command:
            with contextlib.suppress(subprocess.TimeoutExpired):
                command.wait(self.draw.uniform(0, self.whole_s))
            moment = _moment(config, run_folder)
            victim = self._kill(command, run_folder)
            if victim:
                self.hits[f"{victim}, {moment}"] += 1
            if victim in ("engine", "worker"):
                self._end_what_went_on(command, config, run_folder)

    def _end_what_went_on(self, command: "subprocess.Popen[bytes]", config: IngestConfig, run_folder: Path) -> None:
        """The command notices the death of its engine and starts another: give it time, then kill all, which is one more kill."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            command.wait(self.draw.uniform(0, self.whole_s))
        if command.poll() is None:
            self.hits[f"all, having gone on, {_moment(config, run_folder)}"] += 1

    def _kill(self, command: "subprocess.Popen[bytes]", run_folder: Path) -> str | None:
        """SIGKILL for one of its processes, or for all; returns which, or None when there was none."""
        living = processes(run_folder)
        engines = [process for process in living if "ingest.driver" in _command_line(process)]
        workers = [child for engine in engines for child in _children(engine) if "spawn_main" in _command_line(child)]
        chosen = {"command": [process for process in living if process.pid == command.pid], "engine": engines, "worker": workers[:1], "all": living}
        victims = [name for name, found in chosen.items() if found]
        if not victims:
            return None
        victim = self.draw.choice(victims)
        for process in chosen[victim]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        return victim


def _command_line(process: psutil.Process) -> str:
    """Nothing where it has ended by now."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # a zombie is one, too
        return ""


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children()
    except psutil.NoSuchProcess:
        return []


def _is_published(config: IngestConfig) -> bool:
    return storage.exists(storage.join(config.output, "MANIFEST"))


def _moment(config: IngestConfig, run_folder: Path) -> str:
    """What it was at, judged by what it has left."""
    if _is_published(config):
        return "ending"
    [spool] = [config.engine.spool] if config.engine.spool else [str(run_folder / "ingest")]
    fs, inner = storage.filesystem(spool)
    fs.invalidate_cache()
    journals = fs.glob(f"{inner}/**/journals/*/*", detail=True)
    written = [name for name in storage.list_files(config.output) if name.endswith(".tar")]
    done = storage.list_files(storage.join(config.output, "outcomes"))
    if len(written) > len([name for name in done if name.endswith(".parquet")]) or any(name.endswith(".tmp") for name in storage.list_files(config.output)):
        return "publishing a shard"
    if any(found["size"] for found in journals.values()):
        return "fetching"
    return "starting" if list(run_folder.glob("ingest/*/counts.json")) else "before the engine"


def check_and_hash(config: IngestConfig) -> dict[str, str]:
    """The files of a finished dataset by hash, after counting every row once."""
    keys: Counter[str] = Counter()
    folder = storage.join(config.output, "outcomes")
    for name in storage.list_files(folder):
        if name.endswith(".parquet"):
            keys.update(parquet.read_table(storage.join(folder, name)).column("uid").to_pylist())
    assert len(keys) == ROWS + DEAD_ROWS
    assert set(keys.values()) == {1}, "a row has two outcomes"
    assert not [name for name in storage.list_files(config.output) if name.endswith(".tmp")]
    names = [name for name in storage.list_files(config.output) if name.endswith(".tar")]
    return {name: hashlib.sha256(storage.read_bytes(storage.join(config.output, name))).hexdigest() for name in names}


@pytest.fixture
def campaign(tmp_path: Path, web: Any) -> Campaign:
    rows = [{"url": web.url(f"good/{number}"), "caption": f"picture {number}"} for number in range(ROWS)]
    rows += [{"url": web.url(f"status/404?{number}"), "caption": "gone"} for number in range(DEAD_ROWS)]
    random.Random(0).shuffle(rows)
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make_config(output: str) -> IngestConfig:
        values: dict[str, Any] = {"sources": [{"type": "jsonl", "path": str(tmp_path / "list.jsonl")}], "output": output, "samples_per_shard": 30}
        values["fetch"] = {"allow_loopback": True, "timeout_s": 5, "attempts": 1}
        spool = f"{output}-spool" if output.startswith("s3://") else None
        values["engine"] = {"processes": 2, "concurrency": 4, "lease_s": 2, "spool": spool}
        return IngestConfig.model_validate(values)

    return Campaign(web, make_config, tmp_path, random.Random(SEED))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("place", ["disk", "s3"])
def test_killed_at_random_moments_it_loses_and_doubles_nothing(place: str, campaign: Campaign, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    root = request.getfixturevalue("s3_bucket") if place == "s3" else str(tmp_path)
    campaign.web.delay_s = DELAY_S
    whole = campaign.dataset(f"{root}/whole", 0)
    while campaign.hits.total() < KILLS:
        assert campaign.dataset(f"{root}/killed{campaign.datasets}", min(KILLS_PER_DATASET, KILLS - campaign.hits.total())) == whole
    if FIGURES:
        record(place, campaign)


def record(place: str, campaign: Campaign) -> None:
    """Add this place's rows to the file of figures."""
    path = Path(str(FIGURES))
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    rows = [row for row in rows if not row["case"].startswith(f"{place}/")]
    note = f"{campaign.datasets} datasets of {ROWS + DEAD_ROWS} rows, seed {SEED}"
    values: dict[str, float] = {"kills": campaign.hits.total(), "datasets that came out whole, with the bytes of the uninterrupted one": campaign.datasets - 1}
    values |= {"rows asked again per kill, mean": round(sum(campaign.asked_again) / len(campaign.asked_again), 2)}
    values |= {"rows asked again per kill, most": round(max(campaign.asked_again), 2)}
    values |= {f"kills of {hit}": number for hit, number in campaign.hits.most_common()}
    rows += [
        {"case": f"{place}/{case}", "unit": "count", "ours": value, "peer": None, "peer_name": None, "ratio": None, "note": note}
        for case, value in values.items()
    ]
    figures = {"name": "chaos_ingest", "command": "make chaos-ingest", "commit": commit(), "machine": machine(), "rows": rows}
    path.write_text(json.dumps(figures, indent=1) + "\n")
