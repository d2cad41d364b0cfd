"""Training runs whose last compute copy of the teacher is held against its average: python teacher_run.py OUTPUT CONFIG..."""

import json
import sys
from contextlib import nullcontext
from pathlib import Path

import torch

from pipeline.app.config import RunConfig
from pipeline.core import config as configuration
from training import checkpoint, distributed
from training.engine import Trainer
from training.training_run import put_together


def largest_error(path: Path) -> float:
    """Of the weights that compute, against the saved average rounded to their type."""
    config = configuration.load(RunConfig, path, [])
    assert config.training is not None
    run = put_together(config.training, Path(config.run.folder), distributed.start(1))
    trainer = Trainer(run)
    trainer.train()
    saved = checkpoint.read(run.checkpoints).tensors("teacher")
    with run.teacher.units.all_gathered() if run.teacher.units else nullcontext():
        errors = [(parameter - saved[name].to(parameter.dtype)).abs().max() for name, parameter in run.teacher.model.named_parameters()]
        assert {parameter.dtype for parameter in run.teacher.model.parameters()} == {torch.bfloat16 if config.training.precision == "bf16" else torch.float32}
    trainer.close()
    return float(torch.stack(errors).max())


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps([largest_error(Path(path)) for path in sys.argv[2:]]))
