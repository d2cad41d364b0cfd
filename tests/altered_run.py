"""`albef train` with a loop that a test has altered, in the test's own program."""

import sys
from pathlib import Path

from pipeline.app.config import RunConfig
from pipeline.core import config as configuration
from pipeline.core import stopping
from pipeline.core.errors import AlbefError, FailedElsewhere
from training import engine


def train_with(trainer: type[engine.Trainer], config: str) -> int:
    """The exit code; the line of an error goes to stderr, as the command line has it."""
    stopping.install_handlers()
    loaded = configuration.load(RunConfig, Path(config), [])
    assert loaded.training is not None
    engine.Trainer = trainer  # type: ignore[misc]
    try:
        engine.run(loaded.training, Path(loaded.run.folder))
    except AlbefError as error:
        if not isinstance(error, FailedElsewhere):
            sys.stderr.write(f"albef: {error}\n")
        return error.exit_code
    return 0
