"""Many training runs, one after another, in one process on each rank: starting processes takes longer than five steps of a tiny model."""

import gc
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ranks_of_program import run_ranks

from pipeline.app.config import RunConfig
from pipeline.core import config as configuration
from training import engine


def train_all(configs: Sequence[Path], folder: Path, ranks: int) -> list[dict[str, Any]]:
    """`albef train` of each configuration; what each returned."""
    code, said = run_ranks(__file__, lambda rank: [folder / f"results-{rank}.json", *configs], folder, ranks, timeout_s=900)
    assert code == 0, said[0][-3000:]
    results: list[dict[str, Any]] = json.loads((folder / "results-0.json").read_text())
    return results


def train(path: Path) -> dict[str, Any]:
    config = configuration.load(RunConfig, path, [])
    assert config.training is not None
    done = engine.run(config.training, Path(config.run.folder))
    gc.collect()  # an engine is a ring of references, and the next run needs the memory
    return done


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps([train(Path(argument)) for argument in sys.argv[2:]]))
