"""The local folder in which one ingest keeps what it would not do twice.

pair_table.parquet, rejected.parquet, counts.json   the lists, read (counts.json last)
rows/                                               img2dataset's Reader: the rows of each shard
journals/                                           rows fetched of shards not yet published
progress/, failures/                                what workers say
stop                                                asks the workers to stop
engine.log                                          what the engine and its libraries print
"""

import contextlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class WorkFolder:
    """Its folder is named by the fingerprint of the lists and settings, so what lies in it always fits."""

    folder: Path

    @property
    def pair_table(self) -> Path:
        return self.folder / "pair_table.parquet"

    @property
    def rejected(self) -> Path:
        return self.folder / "rejected.parquet"

    @property
    def counts(self) -> Path:
        return self.folder / "counts.json"

    @property
    def rows(self) -> Path:
        return self.folder / "rows"

    @property
    def progress(self) -> Path:
        return self.folder / "progress"

    @property
    def engine_log(self) -> Path:
        return self.folder / "engine.log"

    def journal(self, shard: str) -> Path:
        return self.folder / "journals" / f"{shard}.journal"

    def clear_for_a_start(self) -> None:
        """Forget what the workers of an earlier start said; journals stay."""
        for name in ("rows", "progress", "failures"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
            (self.folder / name).mkdir(parents=True)
        (self.folder / "stop").unlink(missing_ok=True)

    def clear_when_done(self) -> None:
        for name in ("rows", "progress", "failures", "journals"):
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def ask_to_stop(self) -> None:
        (self.folder / "stop").touch()

    def asked_to_stop(self) -> bool:
        return (self.folder / "stop").exists()

    def note_failure(self, shard: str, kind: str, text: str) -> None:
        """`kind` is "storage" (run again when it is back) or "error" (a bug; `text` is the traceback)."""
        (self.folder / "failures" / f"{shard}.json").write_text(json.dumps({"shard": shard, "kind": kind, "text": text}))

    def forget_failure(self, shard: str) -> None:
        (self.folder / "failures" / f"{shard}.json").unlink(missing_ok=True)

    def failures(self) -> list[dict[str, Any]]:
        found = []
        for path in sorted((self.folder / "failures").glob("*.json")):
            with contextlib.suppress(ValueError):  # being written
                found.append(json.loads(path.read_text()))
        return found
