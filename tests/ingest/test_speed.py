"""The forecast on a simulated web, whose clock is a number."""

import random

import pytest

from ingest.speed import ETA_WINDOW_S, Speed

LOOK_EVERY_S = 0.2


def fetched(seconds: float, rows_per_s: float, draw: random.Random) -> list[int]:
    """Rows done at each look at a steady web: they come in bursts, as workers save their progress twice a second, and with chance."""
    looks, rows = [], 0.0
    for look in range(int(seconds / LOOK_EVERY_S)):
        if look % 3 == 0:  # a burst every 0.6 s
            rows += max(0.0, draw.gauss(0.6 * rows_per_s, (0.6 * rows_per_s) ** 0.5))
        looks.append(int(rows))
    return looks


@pytest.mark.parametrize("seconds", [60, 600, 7200])
@pytest.mark.parametrize("rows_per_s", [15, 300])
def test_on_a_steady_web_the_forecast_is_within_a_fifth_after_a_tenth_of_the_run(seconds: int, rows_per_s: int) -> None:
    looks = fetched(seconds, rows_per_s, random.Random(seconds * rows_per_s))
    speed, total, wrong = Speed(), looks[-1], []
    for look, rows in enumerate(looks):
        now = look * LOOK_EVERY_S
        speed.observe(now, rows, rows * 150_000)
        rest = seconds - now
        if now >= 0.1 * seconds and rest > 5:  # in the last seconds a burst is a fifth of what is left
            eta = speed.seconds_for(total - rows)
            assert eta is not None
            wrong.append(abs(eta - rest) / rest)
    assert max(wrong) < 0.2
    assert speed.rows_per_s() == pytest.approx(rows_per_s, rel=0.2)
    assert speed.bytes_per_s() == pytest.approx(150_000 * rows_per_s, rel=0.2)


def test_a_web_that_becomes_slow_shows_in_the_speed_at_once_and_in_the_forecast_soon() -> None:
    speed, rows = Speed(), 0
    for second in range(3600):
        rows += 100 if second < 2900 else 10
        speed.observe(float(second), rows, 0)
        if second == 2940:
            assert speed.rows_per_s() == 10
    assert second - 2900 > ETA_WINDOW_S
    assert speed.seconds_for(1000) == 100


def test_the_speed_is_none_of_the_average_since_the_start() -> None:
    speed = Speed()
    for second in range(100):
        speed.observe(float(second), 10_000 if second else 0, 0)
    assert speed.rows_per_s() == 0


def test_a_count_that_begins_anew_gives_no_negative_speed() -> None:
    speed = Speed()
    for second, rows in enumerate([0, 500, 1000, 0, 7, 14]):
        speed.observe(float(second), rows, rows)
    assert speed.rows_per_s() == 7


def test_without_a_row_there_is_no_forecast_and_without_rows_to_go_it_is_nought() -> None:
    speed = Speed()
    assert speed.seconds_for(10) is None
    speed.observe(0.0, 0, 0)
    speed.observe(9.0, 0, 0)
    assert speed.seconds_for(10) is None
    assert speed.seconds_for(0) == 0
