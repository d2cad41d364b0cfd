"""A jump of the loss or of the gradient norm is found at once, reported once, and told from noise."""

import json
from collections.abc import Callable

import numpy as np
import pytest

from training.watch.spikes import CALM_STEPS, Curve, Spike, SpikeDetector, from_json, to_json

STEPS = 10_000
Noise = Callable[[np.random.Generator], np.ndarray]  # factors around 1


def normal(scale: float) -> Noise:
    return lambda rng: 1 + scale * rng.standard_normal(STEPS)


def log_normal(scale: float) -> Noise:
    return lambda rng: np.exp(scale * rng.standard_normal(STEPS))


def student(degrees: int, scale: float) -> Noise:
    return lambda rng: 1 + scale * rng.standard_t(degrees, STEPS)


def falling_loss(noise: Noise, seed: int) -> list[float]:
    return list((2 + 8 * np.exp(-np.arange(STEPS) / 1500)) * np.maximum(noise(np.random.default_rng(seed)), 0.01))


def spikes_of(values: list[float], detector: SpikeDetector | None = None) -> dict[int, Spike]:
    state: dict[str, Curve] = {}
    found: dict[int, Spike] = {}
    for step, value in enumerate(values):
        state, spikes = (detector or SpikeDetector()).look(state, {"loss/total": value})
        if spikes:
            (found[step],) = spikes
    return found


QUIET = {
    "1 %": normal(0.01), "5 %": normal(0.05), "10 %": normal(0.1), "30 %": normal(0.3), "log-normal 30 %": log_normal(0.3),
    "t6 1 %": student(6, 0.01), "t6 5 %": student(6, 0.05), "t6 10 %": student(6, 0.1),
}  # fmt: skip


@pytest.mark.parametrize("noise", ["5 %", "log-normal 30 %", "t6 10 %"])
def test_a_falling_loss_raises_no_alarm_in_10000_steps(noise: str) -> None:
    assert spikes_of(falling_loss(QUIET[noise], seed=0)) == {}


@pytest.mark.slow
@pytest.mark.parametrize("noise", QUIET.values(), ids=QUIET)
def test_falling_losses_raise_no_alarm_in_40000_steps(noise: Noise) -> None:
    assert [spikes_of(falling_loss(noise, seed)) for seed in range(4)] == [{}] * 4


@pytest.mark.slow
def test_very_heavy_tails_raise_five_false_alarms_in_10000_steps() -> None:
    alarms = [len(spikes_of(falling_loss(student(3, 0.05), seed))) for seed in range(4)]
    assert 4 <= np.mean(alarms) <= 6


def test_a_gradient_norm_that_grows_through_the_warm_up_raises_no_alarm() -> None:
    growth = np.minimum(0.5 + np.arange(3000) / 500, 5)
    assert spikes_of(list(growth * log_normal(0.2)(np.random.default_rng(0))[:3000])) == {}


@pytest.mark.parametrize("at", [60, 1000, 9000])
@pytest.mark.parametrize("width", [1, 5])
def test_a_spike_is_found_at_its_first_step_and_reported_once(at: int, width: int) -> None:
    loss = falling_loss(normal(0.05), seed=1)
    for step in range(at, at + width):
        loss[step] *= 3
    found = spikes_of(loss)
    assert list(found) == [at]
    assert found[at].value == loss[at]
    assert found[at].usual == pytest.approx(np.median(loss[max(0, at - 200) : at]))
    assert f"loss/total is {loss[at]:.4g}, where " in str(found[at])


def test_the_limit_is_the_larger_of_the_two_rules() -> None:
    window = [1.0, 2.0, 3.0, 4.0, 5.0] * 10  # median 3, MAD 1
    detector = SpikeDetector(window=50, at_least=50, threshold=2.0, ratio=1.5)
    (spike,) = spikes_of([*window, 100.0], detector).values()
    assert spike.limit == pytest.approx(3 + 2 * 1.4826)
    assert spikes_of([*window, 5.9], detector) == {}
    assert list(spikes_of([*window, 6.0], detector)) == [50]
    (spike,) = spikes_of([*window, 100.0], SpikeDetector(window=50, at_least=50, threshold=0.1, ratio=1.5)).values()
    assert spike.limit == pytest.approx(4.5)


def test_too_few_values_decide_nothing() -> None:
    assert spikes_of([1.0] * 49 + [100.0] + [1.0] * 50) == {}
    assert list(spikes_of([1.0] * 50 + [100.0])) == [50]


def test_another_level_is_reported_once_and_not_for_ever() -> None:
    rng = np.random.default_rng(0)
    levels = [2.0 + rng.normal(0, 0.05) for _ in range(1000)] + [6.0 + rng.normal(0, 0.05) for _ in range(3000)]
    assert list(spikes_of(levels)) == [1000]


def test_two_spikes_with_calm_between_them_are_two() -> None:
    loss = falling_loss(normal(0.02), seed=2)[:1000]
    loss[500] *= 3
    loss[500 + CALM_STEPS + 1] *= 3
    assert list(spikes_of(loss)) == [500, 500 + CALM_STEPS + 1]
    loss[500 + CALM_STEPS // 2] *= 3
    assert list(spikes_of(loss)) == [500]


def test_what_is_not_finite_is_left_to_the_skipped_steps() -> None:
    state, spikes = SpikeDetector().look({"loss/total": Curve([1.0] * 60)}, {"loss/total": float("nan"), "grad_norm": float("inf")})
    assert spikes == []
    assert state == {"loss/total": Curve([1.0] * 60)}


def test_a_resumed_run_decides_as_the_uninterrupted_one() -> None:
    loss = falling_loss(log_normal(0.05), seed=3)[:900]
    for step in (300, 310, 640):
        loss[step] *= 4
    detector = SpikeDetector()
    state: dict[str, Curve] = {}
    found: dict[int, Spike] = {}
    for step, value in enumerate(loss):
        if step % 77 == 0 or step == 305:  # as if it had been stopped here
            saved = json.dumps(to_json(state))
            assert len(saved) < 3000
            state = from_json(json.loads(saved))
        state, spikes = detector.look(state, {"loss/total": value})
        if spikes:
            (found[step],) = spikes
    assert found == spikes_of(loss)
    assert list(found) == [300, 640]


def test_a_look_leaves_the_state_before_it_alone() -> None:
    before = {"loss/total": Curve([1.0] * 60)}
    SpikeDetector().look(before, {"loss/total": 9.0})
    assert before == {"loss/total": Curve([1.0] * 60)}
