"""`albef train` whose rank 1 changes one bit of what all ranks hold alike, just before they compare after step 4: python diverging_run.py CONFIG WHAT"""

import sys
from pathlib import Path

import torch

from pipeline.app.config import RunConfig
from pipeline.core import config as configuration
from training import distributed
from training.engine import Trainer
from training.loop import StepDone
from training.training_run import TrainingRun, put_together


class Forgetful:
    """A hook: memory that forgets."""

    def __init__(self, run: TrainingRun, what: str) -> None:
        self._run, self._what = run, what

    def after_step(self, done: StepDone) -> None:
        if done.step != 4 or self._run.world.rank != 1:
            return
        for name, tensor in (("feature queue", self._run.queue.image), ("student", self._run.student.itm_head.bias.data)):
            if name == self._what:
                tensor.view(-1).view(torch.int32)[-1] ^= 1

    def close(self) -> None:
        pass


if __name__ == "__main__":
    config = configuration.load(RunConfig, Path(sys.argv[1]), [])
    assert config.training is not None
    trainer = Trainer(put_together(config.training, Path(config.run.folder), distributed.start(1)))
    trainer.hooks.insert(0, Forgetful(trainer.run, sys.argv[2]))  # a step later ZeRO would have gathered whole weights again
    try:
        trainer.train()
    finally:
        trainer.close()
