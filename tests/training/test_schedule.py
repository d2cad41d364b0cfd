"""Learning rate and alpha at the steps that matter, for the paper's schedule and for the stairs of the original code."""

import math
import re
from itertools import pairwise
from typing import Any

import pytest

from training.config import TrainingConfig
from training.schedule import alpha, learning_rate, misfits, ramp, ramp_then_cosine, scaled_peak, stairs_then_cosine_of_epochs

EPOCH = 9_900  # steps: 5.1 million pairs in batches of 512
LAST = 30 * EPOCH - 1


def recipe(**changes: Any) -> TrainingConfig:
    return TrainingConfig(dataset="x", **changes)


def rate_at(config: TrainingConfig, step: int, steps_per_epoch: int = EPOCH) -> float:
    return learning_rate(config, step, steps_per_epoch, config.epochs * steps_per_epoch)


@pytest.mark.parametrize(
    ("step", "rate", "weight"),
    [
        (0, 0.0, 0.0),
        (500, 5e-5, 0.4 * 500 / EPOCH),
        (1_000, 1e-4, 0.4 * 1_000 / EPOCH),
        (EPOCH - 1, 1e-5 + 4.5e-5 * (1 + math.cos(math.pi * (EPOCH - 1 - 1_000) / (LAST - 1_000))), 0.4 * (EPOCH - 1) / EPOCH),
        (EPOCH, 1e-5 + 4.5e-5 * (1 + math.cos(math.pi * (EPOCH - 1_000) / (LAST - 1_000))), 0.4),
        (LAST, 1e-5, 0.4),
    ],
)
def test_the_papers_schedule_at_the_steps_that_matter(step: int, rate: float, weight: float) -> None:
    assert rate_at(recipe(), step) == pytest.approx(rate, rel=1e-12)
    assert alpha(recipe(), step, EPOCH) == pytest.approx(weight, rel=1e-12)


def test_the_papers_rate_is_exact_where_it_is_named() -> None:
    assert [rate_at(recipe(), step) for step in (0, 1_000, LAST)] == [0.0, 1e-4, 1e-5]


@pytest.mark.parametrize(
    ("step", "rate", "weight"),
    [
        (0, 1e-5, 0.0),
        (500, 2.8e-5, 0.4 * 500 / EPOCH),  # the fifth stair begins with the step after the 500th
        (501, 3.25e-5, 0.4 * 501 / EPOCH),
        (1_000, 5.05e-5, 0.4 * 1_000 / EPOCH),
        (2_000, 9.55e-5, 0.4 * 2_000 / EPOCH),
        (2_001, 1e-4, 0.4 * 2_001 / EPOCH),
        (EPOCH - 1, 1e-4, 0.4 * (EPOCH - 1) / EPOCH),
        (EPOCH, 9.975e-5, 0.4),
        (10 * EPOCH, 7.75e-5, 0.4),
        (20 * EPOCH + 77, 3.25e-5, 0.4),
        (LAST, 1.025e-5, 0.4),
    ],
)
def test_the_original_codes_schedule_at_the_steps_that_matter(step: int, rate: float, weight: float) -> None:
    config = recipe(schedule="original_code")
    assert rate_at(config, step) == pytest.approx(rate, rel=5e-4)
    assert alpha(config, step, EPOCH) == pytest.approx(weight, rel=1e-12)


def test_the_original_codes_rate_is_what_its_loop_would_set() -> None:
    """The loop as its authors wrote it down, in slow motion: the rate is changed after an iteration, and at the start of each later epoch."""
    for steps_per_epoch in (37, 250, 2_500):
        rate, step, set_at = 1e-5, 0, {t: 1e-5 + t * 9e-5 / 20 for t in range(21)}
        for epoch in range(4):
            if epoch > 0:
                rate = 1e-5 + 0.5 * 9e-5 * (1 + math.cos(math.pi * epoch / 4))
            for i in range(steps_per_epoch):
                assert rate_at(recipe(schedule="original_code", epochs=4), step, steps_per_epoch) == pytest.approx(rate, rel=1e-9), (steps_per_epoch, step)
                if epoch == 0 and i % 100 == 0 and i <= 2_000:
                    rate = set_at[i // 100]
                step += 1


def test_a_warm_up_longer_than_the_first_epoch_is_cut_by_the_original_and_not_by_the_paper() -> None:
    assert rate_at(recipe(schedule="original_code"), 250, 250) == pytest.approx(9.975e-5, rel=5e-4)
    assert rate_at(recipe(), 250, 250) == pytest.approx(2.5e-5)


def test_the_papers_rate_rises_then_falls_at_every_step() -> None:
    rates = [ramp_then_cosine(step, 100, 10, 1e-4, 1e-5) for step in range(100)]
    assert all(earlier < later for earlier, later in pairwise(rates[:11]))
    assert all(earlier > later for earlier, later in pairwise(rates[10:]))
    assert (rates[0], rates[10], rates[99]) == (0, 1e-4, 1e-5)


def test_without_a_warm_up_the_first_step_has_the_peak() -> None:
    assert ramp_then_cosine(0, 50, 0, 3e-4, 0.0) == 3e-4
    assert stairs_then_cosine_of_epochs(0, 50, 3, 0, 3e-4, 0.0) == 3e-4


def test_a_run_of_one_step_or_one_that_ends_inside_its_warm_up_has_a_rate() -> None:
    assert ramp_then_cosine(0, 1, 0, 1e-4, 1e-5) == 1e-5
    assert ramp_then_cosine(3, 4, 10, 1e-4, 1e-5) == pytest.approx(3e-5)


def test_a_ramp_is_zero_before_it_starts_even_when_it_has_no_length() -> None:
    assert [ramp(step, 4, 0.4) for step in (-3, 0, 1, 2, 4, 400)] == pytest.approx([0.0, 0.0, 0.1, 0.2, 0.4, 0.4])
    assert [ramp(step, 0, 0.4) for step in (-1, 0, 1)] == [0.0, 0.4, 0.4]


def test_alpha_starts_late_and_over_a_set_number_of_steps_where_that_is_asked_for() -> None:
    config = recipe(alpha_start_step=10, alpha_ramp_steps=4)
    assert [alpha(config, step, EPOCH) for step in (0, 10, 11, 12, 14, 99)] == pytest.approx([0.0, 0.0, 0.1, 0.2, 0.4, 0.4])


@pytest.mark.parametrize(("global_batch_size", "peak"), [(512, 1e-4), (1024, 2e-4), (256, 5e-5), (4096, 8e-4)])
def test_another_global_batch_scales_the_peak_alone_and_in_proportion(global_batch_size: int, peak: float) -> None:
    assert scaled_peak(1e-4, global_batch_size, 512) == pytest.approx(peak)
    for schedule, at_start, at_peak in (("paper", 0.0, 1_000), ("original_code", 1e-5, 2_001)):
        config = recipe(schedule=schedule, global_batch_size=global_batch_size, optimizer={"reference_batch_size": 512})
        assert rate_at(config, 0) == at_start
        assert rate_at(config, at_peak) == pytest.approx(peak)
    assert rate_at(recipe(global_batch_size=global_batch_size, optimizer={"reference_batch_size": 512}), LAST) == 1e-5


def test_without_a_reference_batch_the_peak_is_taken_as_it_is() -> None:
    assert rate_at(recipe(global_batch_size=64), 1_000) == 1e-4


@pytest.mark.parametrize(
    ("changes", "steps_per_epoch", "total", "said"),
    [
        ({}, EPOCH, 500, r"warm-up of 1,000 steps is cut short after 500, where the run ends, at a learning rate of 4\.99e-05 on its way to 0\.0001"),
        ({}, 10, 1_000, r"warm-up of 1,000 steps is cut short after 1,000, where the run ends"),
        ({}, 10, 1_001, None),
        ({"optimizer": {"warmup_steps": 0}}, 1, 1, None),
        (
            {"schedule": "original_code"},
            250,
            7_500,
            r"warm-up of 2,000 steps is cut short after 250, where the first epoch ends, at a learning rate of 1\.9e-05",
        ),
        ({"schedule": "original_code"}, 9_900, 40, r"warm-up of 2,000 steps is cut short after 40, where the run ends"),
        ({"schedule": "original_code"}, 2_001, 60_030, r"warm-up of 2,000 steps is cut short after 2,001, where the first epoch ends"),
        ({"schedule": "original_code"}, 2_002, 60_060, None),
        ({"global_batch_size": 64, "optimizer": {"reference_batch_size": 512}}, EPOCH, LAST, None),
        (
            {"global_batch_size": 32, "group_size": 32, "optimizer": {"reference_batch_size": 512}},
            EPOCH,
            LAST,
            r"final_lr 1e-05 is above .* 6\.25e-06 for a .* 32",
        ),
    ],
)
def test_what_a_schedule_cannot_do_in_the_steps_there_are_is_said(changes: dict[str, Any], steps_per_epoch: int, total: int, said: str | None) -> None:
    config = recipe(**changes)
    sentences = misfits(config, steps_per_epoch, total)
    assert len(sentences) == (said is not None)
    assert said is None or re.search(said, sentences[0])
    original = config.schedule == "original_code"
    last = learning_rate(config, (min(steps_per_epoch, total) if original else total) - 1, steps_per_epoch, total)
    assert ("cut short" in (said or "")) == (last != pytest.approx(config.optimizer.peak_lr if original else config.optimizer.final_lr))


def test_a_final_rate_above_the_peak_is_refused() -> None:
    with pytest.raises(ValueError, match=r"final_lr 0\.001 is above peak_lr 0\.0001"):
        recipe(optimizer={"peak_lr": 1e-4, "final_lr": 1e-3})
    assert recipe(optimizer={"peak_lr": 1e-4, "final_lr": 1e-4}).optimizer.final_lr == 1e-4


@pytest.mark.parametrize("warmup_steps", [1, 50, 250])
def test_a_warm_up_that_is_no_number_of_stairs_is_refused_where_stairs_are_climbed(warmup_steps: int) -> None:
    with pytest.raises(ValueError, match=f"optimizer.warmup_steps {warmup_steps} is not a multiple of 100, .*; take one, or schedule paper"):
        recipe(schedule="original_code", optimizer={"warmup_steps": warmup_steps})
    assert recipe(optimizer={"warmup_steps": warmup_steps}).optimizer.warmup_steps == warmup_steps
