"""Again and again, while the disk may get room and the storage may come back."""

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from pipeline.core.errors import Stopped, StorageUnreachable
from training.checkpoint.sums import Damaged

_T = TypeVar("_T")

log = logging.getLogger(__name__)
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 15.0
MAY_PASS = (OSError, StorageUnreachable, Damaged)


@dataclass(frozen=True)
class Patience:
    """Repeats what fails for a reason that may pass: with growing pauses, for `seconds` from the first failure on.

    Args:
        what: is done, for the warnings; one at the first failure, one when it worked after all.
        may_pass: the errors of such reasons.
    """

    seconds: float
    what: str
    may_pass: tuple[type[Exception], ...] = MAY_PASS

    def __call__(self, operation: Callable[[], _T]) -> _T:
        """What `operation` returns; what it raises, when its time is over or the reason does not pass."""
        failed_at, pause = None, FIRST_PAUSE_S
        while True:
            try:
                result = operation()
            except self.may_pass as error:
                if failed_at is None:
                    failed_at = time.monotonic()
                    log.warning("%s: %s; trying again for %g s", self.what, error, self.seconds)
                wait = pause * random.uniform(0.5, 1.5)  # many ranks must not come back at once
                if time.monotonic() + wait > failed_at + self.seconds:
                    raise
                time.sleep(wait)
                pause = min(2 * pause, LONGEST_PAUSE_S)
            else:
                if failed_at is not None:
                    log.warning("%s: it works again, after %.0f s", self.what, time.monotonic() - failed_at)
                return result


def ask_patiently(operation: Callable[[], _T], path: str, seconds: float | None) -> _T:
    """What `operation` does at `path`, where a store that does not answer is asked again for `seconds`; None asks once.

    Raises:
        Stopped: it did not answer in that time.
    """
    if seconds is None:
        return operation()
    try:
        return Patience(seconds, path, may_pass=(StorageUnreachable,))(operation)
    except StorageUnreachable as error:
        raise Stopped(f"{error}; it was tried for {seconds:g} s; when the store is back, the same command goes on") from error
