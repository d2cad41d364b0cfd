"""When a run goes back to a checkpoint, what it leaves out then, and that it never goes in circles."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.loader import Position
from training.watch.roll_back import Event, GoBack, GoOn, Place, Reason, RollBackPolicy, RollBackState, Stop


def position(step: int, epoch: int = 0) -> Position:
    return Position(epoch, step, "f00d", {"web": 8 * step})


def skipped(first_step: int = 31, count: int = 3) -> Event:
    """Optimizer step n trains on the global batch that starts at position n - 1."""
    return Event("non_finite", first_step, tuple(position(first_step - 1 + number) for number in range(count)), f"{count} steps in a row were skipped")


def spike(step: int = 57) -> Event:
    return Event("spike", step, (position(step - 1),), "loss/total is 9, where 2 is usual")


@pytest.mark.parametrize(("mode", "event"), [("non_finite", skipped()), ("spikes", skipped()), ("spikes", spike())])
def test_it_goes_back_to_the_newest_checkpoint_of_before_and_says_what_it_leaves_out(mode: str, event: Event) -> None:
    decision = RollBackPolicy(mode).decide(RollBackState(), event, [10, 20, 30, 40, 60])
    assert isinstance(decision, GoBack)
    assert decision.to_step == {"non_finite": 30, "spike": 40}[event.reason]
    batches = {"non_finite": "batches 30 of epoch 0, 31 of epoch 0, 32 of epoch 0", "spike": "batch 56 of epoch 0"}[event.reason]
    assert decision.line == f"{event.what}; roll-back 1 of 3 to step {decision.to_step}, leaving out global {batches}"
    assert all(decision.state.leaves_out(one) for one in event.batches)
    assert not decision.state.leaves_out(position(29))
    assert not decision.state.leaves_out(position(31, epoch=1))


def test_a_checkpoint_written_after_the_first_bad_step_is_not_gone_back_to() -> None:
    decision = RollBackPolicy("non_finite").decide(RollBackState(), skipped(31), [20, 31, 32])
    assert isinstance(decision, GoBack)
    assert decision.to_step == 20


def test_switched_off_non_finite_steps_stop_the_run_and_spikes_do_not() -> None:
    decision = RollBackPolicy().decide(RollBackState(), skipped(), [10])
    assert decision == Stop("3 steps in a row were skipped; not rolled back, as training.roll_back is never")
    assert RollBackPolicy().decide(RollBackState(), spike(), [10]) == GoOn()
    assert RollBackPolicy("non_finite").decide(RollBackState(), spike(), [10]) == GoOn()


def test_without_a_checkpoint_of_before_there_is_nothing_to_go_back_to() -> None:
    decision = RollBackPolicy("spikes").decide(RollBackState(), skipped(31), [31, 40])
    assert decision == Stop("3 steps in a row were skipped; not rolled back, as there is no checkpoint of before step 31")
    assert RollBackPolicy("spikes").decide(RollBackState(), spike(), []) == GoOn()


def test_the_same_data_are_never_blamed_twice() -> None:
    policy = RollBackPolicy("non_finite")
    first = policy.decide(RollBackState(), skipped(), [30])
    assert isinstance(first, GoBack)
    assert policy.decide(first.state, skipped(), [30]) == Stop(
        "3 steps in a row were skipped; not rolled back, as its data were left out before: they are not to blame"
    )
    other = policy.decide(first.state, skipped(33), [30])  # after the replay others follow upon the same step
    assert isinstance(other, GoBack)
    assert other.line.endswith("leaving out global batches 33 of epoch 0, 34 of epoch 0")
    assert len(other.state.left_out) == 5


def test_after_so_many_roll_backs_the_run_stops() -> None:
    policy, state = RollBackPolicy("spikes", limit=2), RollBackState()
    for step in (31, 41):
        decision = policy.decide(state, skipped(step), [30])
        assert isinstance(decision, GoBack)
        state = decision.state
    last = policy.decide(state, skipped(51), [30])
    assert isinstance(last, Stop)
    assert last.line.endswith("not rolled back, as 2 roll-backs were made and training.roll_back_limit is 2")
    assert policy.decide(state, spike(), [30]) == GoOn()


def test_the_state_comes_back_from_json_as_it_was() -> None:
    decision = RollBackPolicy("spikes").decide(RollBackState(), skipped(), [10])
    assert isinstance(decision, GoBack)
    assert RollBackState.from_json(json.loads(json.dumps(decision.state.to_json()))) == decision.state
    assert RollBackState.from_json(json.loads(json.dumps(RollBackState().to_json()))) == RollBackState()
    assert decision.state.left_out[0] == Place(0, 30, "f00d")


def test_a_batch_of_another_order_is_not_left_out() -> None:
    decision = RollBackPolicy("spikes").decide(RollBackState(), skipped(), [10])
    assert isinstance(decision, GoBack)
    assert not decision.state.leaves_out(Position(0, 30, "beef"))


@given(st.lists(st.tuples(st.sampled_from(["non_finite", "spike"]), st.integers(1, 40)), max_size=30), st.integers(0, 5))
def test_whatever_happens_a_run_goes_back_at_most_so_often_and_each_time_without_more_data(events: list[tuple[Reason, int]], limit: int) -> None:
    policy, state = RollBackPolicy("spikes", limit), RollBackState()
    for reason, step in events:
        decision = policy.decide(state, Event(reason, step, (position(step - 1),), "it"), range(0, 40, 5))
        if isinstance(decision, GoBack):
            assert len(decision.state.left_out) == len(state.left_out) + 1
            assert decision.to_step < step
            state = decision.state
    assert len(state.made) <= limit
    assert len(set(state.left_out)) == len(state.left_out) == len(state.made)
