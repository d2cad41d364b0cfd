"""`albef train` on a dataset of which some global batches are poisoned on one rank: python poisoned_run.py CONFIG RANK POISON BATCH..."""

import dataclasses
import sys
from pathlib import Path

import torch

from pipeline.app.config import RunConfig
from pipeline.core import config as configuration
from pipeline.core import stopping
from pipeline.core.errors import AlbefError
from shards.loader import Position
from training import engine
from training.batch import Batch
from training.masking import IGNORED
from training.tokenizer import SPECIAL

ROW = 1  # of the micro-batch


def nan(batch: Batch) -> Batch:
    """In one picture."""
    pixels = batch.pixels(torch.float32).clone()
    pixels[ROW, 0, 3, 5] = torch.nan
    return dataclasses.replace(batch, images=pixels)


def nonsense(batch: Batch) -> Batch:
    """Every hidden word is said to be one that no caption has: a loss that jumps."""
    labels = batch.mlm_labels
    return dataclasses.replace(batch, mlm_labels=torch.where(labels == IGNORED, labels, SPECIAL.index("[UNK]")))


POISONS = {poison.__name__: poison for poison in (nan, nonsense)}


class Poisoned(engine.Trainer):
    rank, poison, positions = 0, staticmethod(nan), frozenset[int]()

    def _next(self, batches: engine.Batches) -> tuple[list[Batch], Position]:
        micro_batches, position = super()._next(batches)
        started = self.run.state.position
        if self.run.world.rank == self.rank and started.epoch * self.run.loader.steps_per_epoch + started.step in self.positions:
            micro_batches = [self.poison(micro_batches[0]), *micro_batches[1:]]
        return micro_batches, position


def main(path: str, rank: str, poison: str, *positions: str) -> int:
    stopping.install_handlers()
    config = configuration.load(RunConfig, Path(path), [])
    assert config.training is not None
    Poisoned.rank, Poisoned.poison, Poisoned.positions = int(rank), staticmethod(POISONS[poison]), frozenset(map(int, positions))
    engine.Trainer = Poisoned  # type: ignore[misc]
    try:
        engine.run(config.training, Path(config.run.folder))
    except AlbefError as error:
        sys.stderr.write(f"albef: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
