"""wandb in offline mode, by the real package: what it stores is read back from its own files."""

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_until

from pipeline.core.errors import ConfigError
from training.hooks.wandb_log import WandbLog, kept_id

BLOCK, HEADER = 32768, 7


def opened(folder: Path) -> WandbLog:
    return WandbLog(folder, project="albef", name="a run", mode="offline", config={"seed": 3, "optimizer": {"peak_lr": 1e-4}})


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_API_KEY", "")


def records(folder: Path) -> Iterator[Any]:
    """All records of all starts, in order: wandb's files are LevelDB logs of protobuf messages."""
    from wandb.proto.wandb_internal_pb2 import Record

    for path in sorted(folder.rglob("*.wandb")):
        data, place, whole = path.read_bytes(), HEADER, b""
        while place + HEADER <= len(data):
            if BLOCK - place % BLOCK < HEADER:  # the rest of a block too short for a header
                place += BLOCK - place % BLOCK
                continue
            _, length, kind = struct.unpack("<IHB", data[place : place + HEADER])
            if place + HEADER + length > len(data):  # not written to its end yet
                break
            whole += data[place + HEADER : place + HEADER + length]
            place += HEADER + length
            if kind in (1, 4):  # whole, or the last part
                yield Record.FromString(whole)
                whole = b""


def history(folder: Path) -> list[dict[str, Any]]:
    rows = [record.history.item for record in records(folder) if record.WhichOneof("record_type") == "history"]
    return [{item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in row} for row in rows]


@pytest.mark.usefixtures("wandb")
def test_wandb_stores_the_names_of_metrics_jsonl_and_one_run_goes_on_after_a_restart(tmp_path: Path) -> None:
    first = opened(tmp_path)
    first.record(1, {"loss/itc": 2.5, "lr": 1e-4})
    first.record(2, {"loss/itc": 2.25, "lr": 2e-4})
    first.record(2, {"val/itc": 3.0})
    first.close()
    second = opened(tmp_path)
    second.record(3, {"loss/itc": 2.0, "lr": 3e-4})
    second.close()
    wait_until(lambda: len(history(tmp_path)) >= 3)  # wandb's own process writes it
    rows = history(tmp_path)
    assert [row["_step"] for row in rows] == [1, 2, 3]
    assert [row["loss/itc"] for row in rows] == [2.5, 2.25, 2.0]
    assert (rows[1]["lr"], rows[1]["val/itc"]) == (2e-4, 3.0)
    runs = [record.run for record in records(tmp_path) if record.WhichOneof("record_type") == "run"]
    assert {run.run_id for run in runs} == {first.id} == {second.id}
    assert {(run.project, run.display_name) for run in runs} == {("albef", "a run")}
    configured = {item.key: json.loads(item.value_json) for item in runs[0].config.update}
    assert configured["optimizer"] == {"peak_lr": 1e-4}


@pytest.mark.usefixtures("wandb")
def test_training_goes_on_when_wandb_breaks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = opened(tmp_path)
    one._run.finish()  # as when its own process dies
    for step in (1, 2):
        one.record(step, {"loss/itc": 2.5})
    one.close()
    assert [record.message.partition(" (")[0] for record in caplog.records if record.levelname == "WARNING"] == ["wandb failed"]


def test_the_id_is_drawn_once_a_run_directory(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    assert kept_id(tmp_path) == kept_id(tmp_path) != kept_id(tmp_path / "other")


def test_without_the_package_its_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"training.wandb: the package wandb is not installed; pip install 'albef\[wandb\]'"):
        opened(tmp_path)
