"""A loss or a gradient norm that jumps: told from noise by the median and the spread of the last steps."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

MAD_TO_SIGMA = 1.4826  # the median absolute deviation of normal noise, times this, is its standard deviation
CALM_STEPS = 20  # in a row below the limit before a curve that spiked may spike anew
DIGITS = 7  # of a remembered value: its fp32 has no more, and it is spelled out in every checkpoint


@dataclass(frozen=True)
class Spike:
    """One value far above those before it."""

    name: str
    value: float
    usual: float  # the median of the window
    limit: float  # the least that would have been a spike

    def __str__(self) -> str:
        return f"{self.name} is {self.value:.4g}, where {self.usual:.4g} is usual and more than {self.limit:.4g} a spike"


@dataclass
class Curve:
    """The last values of one curve, and for how many steps it must still stay calm before it may spike anew."""

    window: list[float] = field(default_factory=list)
    alarmed_for: int = 0


@dataclass(frozen=True)
class SpikeDetector:
    """A value is a spike above both median + `threshold` x scaled MAD and `ratio` x median of the last `window` values, of which there must be `at_least`.

    A curve that spiked is quiet until it has been below the limit for 20 steps, so a spike of several steps and a shift to another level are reported once:
    half a window later the new level is the usual one.

    False alarms, as tests/training/watch/test_spikes.py measures them on losses that fall from 10 to 2, per 10,000 steps: none with normal noise of 1 to
    30 %, log-normal noise of 30 % (a gradient norm's) and Student's t noise of 6 degrees of freedom of 1 to 10 %; 5 with the tails of 3 degrees of freedom
    and 5 %, of which some values really are half as large again as their neighbours. A step costs 0.06 ms a curve.
    """

    window: int = 200
    at_least: int = 50
    threshold: float = 10.0
    ratio: float = 1.5

    def __post_init__(self) -> None:
        assert self.window >= self.at_least >= 1

    def look(self, state: Mapping[str, Curve], values: Mapping[str, float]) -> tuple[dict[str, Curve], list[Spike]]:
        """The state after one applied step with these `values`, and the spikes among them; `state` is left alone, and nothing else decides."""
        after, spikes = dict(state), []
        for name, value in values.items():
            if math.isfinite(value):  # others are the business of the skipped steps
                after[name], spike = self._look(name, state.get(name, Curve()), value)
                spikes += [spike] if spike else []
        return after, spikes

    def _look(self, name: str, curve: Curve, value: float) -> tuple[Curve, Spike | None]:
        known = curve.window
        window = [*known[-(self.window - 1) :], float(f"{value:.{DIGITS}g}")]
        if len(known) < self.at_least:
            return Curve(window), None
        usual = median(known)
        limit = max(usual + self.threshold * MAD_TO_SIGMA * median(abs(one - usual) for one in known), self.ratio * usual)
        if value <= limit:
            return Curve(window, max(0, curve.alarmed_for - 1)), None
        return Curve(window, CALM_STEPS), None if curve.alarmed_for else Spike(name, value, usual, limit)


def to_json(state: Mapping[str, Curve]) -> dict[str, Any]:
    """For the checkpoint; about 2 kB a curve."""
    return {name: {"window": curve.window, "alarmed_for": curve.alarmed_for} for name, curve in state.items()}


def from_json(saved: Mapping[str, Any]) -> dict[str, Curve]:
    return {name: Curve(list(curve["window"]), int(curve["alarmed_for"])) for name, curve in saved.items()}
