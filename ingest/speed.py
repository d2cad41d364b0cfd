"""How fast ingest is now and how long the rest takes, from counts over a sliding window."""

from collections import deque
from typing import NamedTuple

SPEED_WINDOW_S = 30.0  # what the operator sees: a web that has just become slow shows at once
ETA_WINDOW_S = 600.0  # what the forecast rests on: shards end and begin, hosts come and go
APART_S = 1.0  # observations kept: 600 of them are enough for a line


class _Observation(NamedTuple):
    time_s: float
    rows: int
    bytes: int


class Speed:
    """Fed with what has been fetched so far, at times of any one clock."""

    def __init__(self) -> None:
        self._kept = deque[_Observation]()
        self._last: _Observation | None = None

    def observe(self, time_s: float, rows: int, bytes_: int) -> None:
        """A count that falls means that counting began anew, as it does with a new start of the engine."""
        if self._last is not None and (rows < self._last.rows or bytes_ < self._last.bytes):
            self._kept.clear()
        self._last = _Observation(time_s, rows, bytes_)
        if not self._kept or time_s - self._kept[-1].time_s >= APART_S:
            self._kept.append(self._last)
        while len(self._kept) > 2 and self._kept[1].time_s <= time_s - ETA_WINDOW_S:
            self._kept.popleft()

    def rows_per_s(self) -> float:
        """Over the last half minute, or since the first observation."""
        first, seconds = self._since(SPEED_WINDOW_S)
        return (self._now.rows - first.rows) / seconds if seconds else 0.0

    def bytes_per_s(self) -> float:
        first, seconds = self._since(SPEED_WINDOW_S)
        return (self._now.bytes - first.bytes) / seconds if seconds else 0.0

    def seconds_for(self, rows: int) -> float | None:
        """How long `rows` more take at the speed of the last ten minutes; None while nothing is known."""
        if rows == 0:
            return 0.0
        first, seconds = self._since(ETA_WINDOW_S)
        done = self._now.rows - first.rows
        return rows * seconds / done if done else None

    @property
    def _now(self) -> _Observation:
        return self._last or _Observation(0.0, 0, 0)

    def _since(self, window_s: float) -> tuple[_Observation, float]:
        """The latest observation that is at least `window_s` old, or the oldest there is, and the seconds since."""
        first = self._now
        for one in reversed(self._kept):
            first = one
            if self._now.time_s - one.time_s >= window_s:
                break
        return first, self._now.time_s - first.time_s
