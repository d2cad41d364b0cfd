"""`albef train` whose rank 1 cannot read its share of the fourth global batch: python unreadable_run.py CONFIG"""

import sys

from altered_run import train_with

from pipeline.core.errors import Stopped
from shards.loader import Position
from training import engine
from training.batch import Batch


class Unreadable(engine.Trainer):
    def _next(self, batches: engine.Batches) -> tuple[list[Batch], Position]:
        if self.run.world.rank == 1 and self.run.state.step == 3:
            raise Stopped("shard 7: the store does not answer")
        return super()._next(batches)


if __name__ == "__main__":
    sys.exit(train_with(Unreadable, sys.argv[1]))
