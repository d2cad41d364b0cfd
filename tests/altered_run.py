"""`albef train` with a loop that a test has altered, in the test's own program."""

from functools import partial
from pathlib import Path

from pipeline.app.cli import exit_code_of
from pipeline.app.config import RunConfig
from pipeline.core import config as configuration
from pipeline.core import stopping
from training import engine


def train_with(trainer: type[engine.Trainer], config: str) -> int:
    """The exit code."""
    stopping.install_handlers()
    loaded = configuration.load(RunConfig, Path(config), [])
    assert loaded.training is not None
    engine.Trainer = trainer  # type: ignore[misc]
    return exit_code_of(partial(engine.run, loaded.training, Path(loaded.run.folder)))
