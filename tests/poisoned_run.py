"""`albef train` on a dataset of which some global batches are poisoned on one rank: python poisoned_run.py CONFIG RANK POISON BATCH..."""

import dataclasses
import sys
from pathlib import Path

import torch
from altered_run import train_with
from waiting import wait_until

from shards.loader import Position
from training import checkpoint, engine
from training.batch import Batch
from training.checkpoint.layout import latest_of
from training.masking import IGNORED
from training.tokenizer import SPECIAL
from training.training_run import TrainingRun

ROW = 1  # of the micro-batch


def nan(batch: Batch, run: TrainingRun) -> Batch:
    """In one picture."""
    pixels = batch.pixels(torch.float32).clone()
    pixels[ROW, 0, 3, 5] = torch.nan
    return dataclasses.replace(batch, images=pixels)


def nan_and_damage(batch: Batch, run: TrainingRun) -> Batch:
    """And the newest checkpoint, which has been written by then, loses the end of a file."""
    newest = checkpoint.name_of(run.state.step // run.config.save_every_steps * run.config.save_every_steps)
    wait_until(lambda: latest_of(run.checkpoints) == newest)
    student = Path(run.checkpoints) / newest / "student.safetensors"
    student.write_bytes(student.read_bytes()[:-100])
    return nan(batch, run)


def nonsense(batch: Batch, run: TrainingRun) -> Batch:
    """Every hidden word is said to be one that no caption has: a loss that jumps."""
    labels = batch.mlm_labels
    return dataclasses.replace(batch, mlm_labels=torch.where(labels == IGNORED, labels, SPECIAL.index("[UNK]")))


POISONS = {poison.__name__: poison for poison in (nan, nan_and_damage, nonsense)}


class Poisoned(engine.Trainer):
    rank, poison, positions = 0, staticmethod(nan), frozenset[int]()

    def _next(self, batches: engine.Batches) -> tuple[list[Batch], Position]:
        micro_batches, position = super()._next(batches)
        started = self.run.state.position
        if self.run.world.rank == self.rank and started.epoch * self.run.loader.steps_per_epoch + started.step in self.positions:
            micro_batches = [self.poison(micro_batches[0], self.run), *micro_batches[1:]]
        return micro_batches, position


def main(config: str, rank: str, poison: str, *positions: str) -> int:
    Poisoned.rank, Poisoned.poison, Poisoned.positions = int(rank), staticmethod(POISONS[poison]), frozenset(map(int, positions))
    return train_with(Poisoned, config)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
