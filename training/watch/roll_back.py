"""Whether a run that went wrong goes on, goes back to a checkpoint without the data that did it, or stops: the policy alone, which touches nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from shards.loader import Position

Reason = Literal["non_finite", "spike"]
Mode = Literal["never", "non_finite", "spikes"]  # spikes: for those, and for non-finite steps, too; not `off`, which YAML reads as false
NAMED = 4  # left out batches in a line of the log


@dataclass(frozen=True)
class Place:
    """A global batch, by where in which order of the data it starts."""

    epoch: int
    step: int  # within the epoch
    fingerprint: str

    @classmethod
    def of(cls, position: Position) -> "Place":
        return cls(position.epoch, position.step, position.fingerprint)

    def __str__(self) -> str:
        return f"{self.step} of epoch {self.epoch}"


@dataclass(frozen=True)
class Event:
    """What went wrong: so many steps skipped in a row, or one spike."""

    reason: Reason
    first_step: int  # optimizer step, as it is counted, that was the first to go wrong
    batches: tuple[Position, ...]  # where the global batches of the steps that went wrong start
    what: str  # a few words for the log


@dataclass(frozen=True)
class RollBack:
    """One that was made."""

    reason: Reason
    to_step: int
    from_step: int


@dataclass(frozen=True)
class RollBackState:
    """What a run remembers; JSON-able, and kept when a checkpoint is loaded in its midst: what that one remembers is older."""

    left_out: tuple[Place, ...] = ()  # global batches that no replay trains on, in the order they were left out
    made: tuple[RollBack, ...] = field(default=())

    def leaves_out(self, position: Position) -> bool:
        """Whether the global batch that starts here is to be dropped."""
        return Place.of(position) in self.left_out

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> "RollBackState":
        return cls(tuple(Place(**place) for place in saved["left_out"]), tuple(RollBack(**one) for one in saved["made"]))


@dataclass(frozen=True)
class GoOn:
    """Nothing is done about it."""


@dataclass(frozen=True)
class GoBack:
    """Load the checkpoint of `to_step`, keep `state`, and drop its batches; `line` is for the log."""

    to_step: int
    state: RollBackState
    line: str


@dataclass(frozen=True)
class Stop:
    """End the run with exit code 4 and this line."""

    line: str


@dataclass(frozen=True)
class RollBackPolicy:
    """`limit` roll-backs a run at most, each of which leaves out batches that none before it left out: so none is made twice in vain."""

    mode: Mode = "never"
    limit: int = 3

    def decide(self, state: RollBackState, event: Event, checkpoint_steps: Sequence[int]) -> GoOn | GoBack | Stop:
        """The same on every rank that asks the same. `checkpoint_steps`: those of the verified checkpoints that the run may go back to.

        A spike that cannot be rolled back is lived with; steps that stay non-finite are not.
        """
        refused = self._refused(state, event, checkpoint_steps)
        if refused and event.reason == "spike":
            return GoOn()
        if refused:
            return Stop(f"{event.what}; {refused}")
        to_step = max(step for step in checkpoint_steps if step < event.first_step)
        new = _not_left_out(state, event)
        made = RollBack(event.reason, to_step, event.first_step)
        after = replace(state, left_out=(*state.left_out, *new), made=(*state.made, made))
        line = f"{event.what}; roll-back {len(after.made)} of {self.limit} to step {to_step}, leaving out {_named(new)}"
        return GoBack(to_step, after, line)

    def _refused(self, state: RollBackState, event: Event, checkpoint_steps: Sequence[int]) -> str | None:
        """Why not to go back."""
        if self.mode == "never" or (event.reason == "spike" and self.mode != "spikes"):
            return "not rolled back, as training.roll_back is " + self.mode
        if not any(step < event.first_step for step in checkpoint_steps):
            return f"not rolled back, as there is no checkpoint of before step {event.first_step}"
        if not _not_left_out(state, event):
            return "not rolled back, as its data were left out before: they are not to blame"
        if len(state.made) >= self.limit:
            return f"not rolled back, as {len(state.made)} roll-backs were made and training.roll_back_limit is {self.limit}"
        return None


def _not_left_out(state: RollBackState, event: Event) -> tuple[Place, ...]:
    return tuple(place for place in dict.fromkeys(map(Place.of, event.batches)) if place not in state.left_out)


def _named(places: Sequence[Place]) -> str:
    more = f" and {len(places) - NAMED} more" if len(places) > NAMED else ""
    return f"global batch{'es' if len(places) > 1 else ''} {', '.join(map(str, places[:NAMED]))}{more}"
