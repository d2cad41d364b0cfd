"""What the background threads of all ranks tell each other, while the main threads train."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

from pipeline.core.errors import AlbefError, FailedElsewhere, Stopped
from training.distributed import World

_T = TypeVar("_T")

FOR_EVER = timedelta(days=7)  # a rank may be patient for hours; one that died is noticed by its closed connection


class Exchange:
    """A process group of its own: collective calls of two threads on one group would meet each other's. Made by every rank at once."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._group: Any = dist.new_group(backend="gloo", timeout=FOR_EVER) if world.world_size > 1 else None

    def together(self, act: Callable[[], _T]) -> list[_T]:
        """What `act` gives on each rank, in rank order, once it succeeded on all; every rank must call.

        Raises the first rank's error there, and FailedElsewhere on the others.
        """
        done: list[_T] = []
        error: Exception | None = None
        try:
            done.append(act())
        except (AlbefError, OSError) as raised:
            error = raised
        told = self._of_all((done, str(error) if error else None))
        failed = [rank for rank, (_, text) in enumerate(told) if text is not None]
        if error and failed[0] == self.world.rank:
            raise error
        if failed:
            raise FailedElsewhere(told[failed[0]][1], Stopped.exit_code)
        return [results[0] for results, _ in told]

    def _of_all(self, value: Any) -> list[Any]:
        if self._group is None:
            return [value]
        values: list[Any] = [None] * self.world.world_size
        try:
            dist.all_gather_object(values, value, group=self._group)
        except RuntimeError as error:  # gloo, whose connection to a rank is closed
            raise Stopped("another rank ended") from error
        return values
