"""The errors of albef and the exit code each one ends with.

AlbefError                 1   a promise of ours was broken
├── UserError              2   the user's mistake: key or file, what was found, what to do
│   ├── ConfigError        2   ... in the configuration
│   └── DataError          2   ... in a list, a picture folder, a shard, a checkpoint
│       └── StorageUnreachable 2   ... or the storage does not answer now, which may pass
├── BelowFloor             3   finished, but under a floor the user set
├── Stopped                4   stopped early, and the same command goes on from here
└── FailedElsewhere            another rank ended with one of these; its exit code
"""


class AlbefError(Exception):
    """Base of every error albef raises on purpose; its text is one line a stranger can act on."""

    exit_code = 1


class UserError(AlbefError):
    """Something the user gave is wrong; the text names it, says what was found and what to do."""

    exit_code = 2


class ConfigError(UserError):
    """A configuration key is unknown, missing or holds a value that cannot be used."""


class DataError(UserError):
    """A file the user pointed to is missing, unreadable, damaged or of the wrong kind."""


class StorageUnreachable(DataError):
    """The storage does not answer, or says that it cannot now: what fails with this may work in a minute."""


class BelowFloor(AlbefError):
    """The stage finished, but a rate is below the floor the user set for it."""

    exit_code = 3


class FailedElsewhere(AlbefError):
    """Another rank failed, and prints its own line; this one ends with the same exit code, and in silence."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Stopped(AlbefError):
    """The stage stopped early (signal, STOP file, storage gone); running the same command again continues."""

    exit_code = 4
