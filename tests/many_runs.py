"""Many training runs, one after another, in one process on each rank: starting processes takes longer than five steps of a tiny model."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tiny_run import environment

from pipeline.core.loopback import free_port

START_S = 900.0


def train_all(configs: Sequence[Path], folder: Path, ranks: int) -> list[dict[str, Any]]:
    """`albef train` of each configuration; what each returned, or `{"error": its line, "code": its exit code}`."""
    folder.mkdir(parents=True, exist_ok=True)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(ranks), "LOCAL_SIZE": str(ranks)}
    processes = []
    for rank in range(ranks):
        with (folder / f"rank-{rank}.txt").open("wb") as output:
            command = [sys.executable, __file__, str(folder / f"results-{rank}.json"), *map(str, configs)]
            own = {**environment(), **place, "RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": os.pathsep.join(sys.path)}
            processes.append(subprocess.Popen(command, env=own, stdout=output, stderr=subprocess.STDOUT))
    try:
        for rank, process in enumerate(processes):
            assert process.wait(START_S) == 0, (folder / f"rank-{rank}.txt").read_text()[-3000:]
    finally:
        for process in processes:
            process.kill()
    results: list[dict[str, Any]] = json.loads((folder / "results-0.json").read_text())
    return results


def _main(results: Path, configs: Sequence[Path]) -> None:
    from pipeline.app.config import RunConfig
    from pipeline.core import config as configuration
    from pipeline.core.errors import AlbefError
    from training import engine

    done: list[dict[str, Any]] = []
    for path in configs:
        config = configuration.load(RunConfig, path, [])
        assert config.training is not None
        with contextlib.ExitStack() as stack:
            stack.callback(_let_go)
            try:
                done.append(engine.run(config.training, Path(config.run.folder)))
            except AlbefError as error:
                done.append({"error": str(error), "code": error.exit_code})
    results.write_text(json.dumps(done))


def _let_go() -> None:
    import gc

    gc.collect()


if __name__ == "__main__":
    _main(Path(sys.argv[1]), [Path(argument) for argument in sys.argv[2:]])
