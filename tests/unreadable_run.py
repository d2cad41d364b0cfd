"""`albef train` whose rank 1 cannot read its share of the fourth global batch: python unreadable_run.py CONFIG"""

import sys
from pathlib import Path

from pipeline.app.config import RunConfig
from pipeline.core import config as configuration
from pipeline.core.errors import AlbefError, FailedElsewhere, Stopped
from shards.loader import Position
from training import engine
from training.batch import Batch


class Unreadable(engine.Trainer):
    def _next(self, batches: engine.Batches) -> tuple[list[Batch], Position]:
        if self.run.world.rank == 1 and self.run.state.step == 3:
            raise Stopped("shard 7: the store does not answer")
        return super()._next(batches)


def main(path: str) -> int:
    config = configuration.load(RunConfig, Path(path), [])
    assert config.training is not None
    engine.Trainer = Unreadable  # type: ignore[misc]
    try:
        engine.run(config.training, Path(config.run.folder))
    except AlbefError as error:
        if not isinstance(error, FailedElsewhere):
            sys.stderr.write(f"albef: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
